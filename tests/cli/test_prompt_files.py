"""Read prompt files: plain lines, tables and JSON, valid and invalid."""

import json

import pytest

from imagen.cli.prompts import Prompt, read_prompts
from imagen.errors import UserError


def test_prompt_files_of_all_formats_are_read(tmp_path):
    rows = [
        {"prompt": " a cat ", "seed": 3, "negative": "blur"},
        {"prompt": "Ein Café, 猫", "id": 17},
        {"prompt": "", "seed": 0},
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    (tmp_path / "p.csv").write_text('id,prompt,seed,negative\n1, a cat ,3,blur\n2,"Ein Café, 猫",,\n3,,0,\n', "utf-8")
    expected = [
        Prompt(prompt="a cat", seed=3, negative="blur"),
        Prompt(prompt="Ein Café, 猫"),
        Prompt(prompt="", seed=0),
    ]
    assert read_prompts(tmp_path / "p.jsonl") == read_prompts(tmp_path / "p.csv") == expected
    (tmp_path / "p.txt").write_text("\ufeffa cat\n\n  a dog, black \n", encoding="utf-8")
    assert read_prompts(tmp_path / "p.txt") == [Prompt(prompt="a cat"), Prompt(prompt="a dog, black")]
    (tmp_path / "p.json").write_text(json.dumps(["a cat", {"prompt": "a dog", "seed": 2, "id": [[1]]}]))
    assert read_prompts(tmp_path / "p.json") == [Prompt(prompt="a cat"), Prompt(prompt="a dog", seed=2)]
    # The format of the published Parti prompts.
    (tmp_path / "p.tsv").write_text('Prompt\tCategory\r\na sign that says ""STOP""\tWriting\r\n"a ""b"""\tX\r\n')
    assert [row.prompt for row in read_prompts(tmp_path / "p.tsv")] == ['a sign that says ""STOP""', 'a "b"']


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e", "\r"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_prompts_end_only_at_line_ends(tmp_path, mark, end):
    prompts = [f"a cat{mark}in a hat", "a dog"]
    (tmp_path / "p.txt").write_bytes((end.join(prompts) + end).encode())
    rows = [json.dumps({"prompt": prompt}, ensure_ascii=False) for prompt in prompts]
    (tmp_path / "p.jsonl").write_bytes((end.join(rows) + end).encode())
    (tmp_path / "p.json").write_bytes(json.dumps(prompts, ensure_ascii=False).encode())
    names = ["p.txt", "p.jsonl", "p.json"]
    if mark != "\r":  # tables with bare carriage returns are rejected
        names += ["p.csv", "p.tsv"]
        for name in names[-2:]:
            (tmp_path / name).write_bytes(end.join(["prompt", *prompts]).encode())
    for name in names:
        assert [row.prompt for row in read_prompts(tmp_path / name)] == prompts, name


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": ', r"p\.jsonl, line 2: not valid JSON"),
        ("p.jsonl", '["a"]', "line 1: expected an object"),
        ("p.jsonl", '{"text": "a"}', "line 1: it needs a field 'prompt'"),
        ("p.jsonl", '{"prompt": "a", "negatve": "b"}', "unknown field 'negatve'; did you mean 'negative'"),
        ("p.jsonl", '{"prompt": "a", "seed": -1}', "seed is -1; it must be a whole number"),
        ("p.csv", "prompt,seed\na,x\n", "line 2: seed is 'x'"),
        ("p.csv", "caption\na\n", "line 1: a table needs a header with one column 'prompt'; this one has 'caption'"),
        ("p.csv", "prompt,prompt\na,b\n", "line 1: a table needs a header with one column 'prompt'"),
        ("p.csv", 'prompt,seed\na,1\n"a" cat,2\n', "line 3: text after a closing quote"),
        ("p.csv", 'prompt,seed\n"a cat,1\na dog",2\n', "line 2: .* a quote that is not closed on this line"),
        ("p.tsv", 'prompt\tseed\n"a cat\t1\na dog"\t2\n', "line 2: .* a quote that is not closed on this line"),
        ("p.csv", "prompt,seed\na cat, black,1\n", "line 2: 3 cells, but the header has 2"),
        ("p.json", '{"prompt": "a"}', "p.json: expected a list"),
        ("p.json", '["a", 3]', "p.json, prompt 2: expected text or an object, not 3"),
        ("p.json", '["a"', "p.json: not valid JSON"),
        ("p.json", "[" * 900 + "]" * 900, "p.json: not valid JSON: it is nested more than 100 deep"),
        ("p.jsonl", '{"prompt": ' + "[" * 100_000, "line 1: not valid JSON: it is nested more than 100 deep"),
        ("p.jsonl", '{"prompt": "\\ud800"}', r"line 1: the prompt is not UTF-8: '\\ud800'"),
        ("p.jsonl", '{"prompt": "", "negative": "a\\u0000b"}', r"line 1: negative contains a zero byte"),
        ("p.jsonl", '{"prompt": "a", "seed": ' + "9" * 4000 + "}", r"seed is about 10\^4000; it must be"),
        ("p.csv", "prompt,seed\na," + "9" * 5000, r"seed is '9+'\.\.\.; it must be a whole number"),
        ("p.txt", "a cat\n" + "a" * 1_200_000, "line 2: the prompt has 1,200,000 characters; at most 10,000"),
        ("p.txt", "cat " * 300_000, "line 1: the prompt has 1,200,000 characters; at most 10,000"),
        ("p.xlsx", "prompt", r"p.xlsx: the file's name must end in \.txt, \.jsonl, \.json, \.csv, \.tsv, or"),
    ],
)
def test_mistakes_in_prompt_files_are_reported(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_prompts(tmp_path / name)
