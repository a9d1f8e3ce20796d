"""Measure generated images: against a data set, by metrics; training runs beside each other.

run.py         evaluate a cascade on shards; real.py and generated.py give the features
sweep.py       several settings, and each stage on true and generated inputs
extractors/    networks that turn images into features
metrics/       distances between sets of features
report.py      the HTML page; plots.py draws its plots
compare.py     curves of training runs; curve.py stores scores of checkpoints
side_by_side.py  evaluations in one table and figure
"""

REPORT = "report.json"  # in the folder of an evaluation
SWEPT = ("guidance", "steps", "sampler", "low_res_noise")  # settings that a sweep varies
