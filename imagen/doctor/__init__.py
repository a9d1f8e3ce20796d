"""Examine a training run, a cascade or shards, and say in plain words what is wrong: `imagen doctor`.

check.py       what a check is
finding.py     what it returns
subject.py     what is examined; run.py: the files of a training run
checks.py      the list of all checks
examine.py     runs them
data.py, embeddings.py, log.py, weights.py, loss.py, sampling.py, upsampling.py   the checks, by what they measure
network.py, samples.py   measurements that checks share
"""
