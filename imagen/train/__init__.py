"""Training of one stage.

run.py             `train_run`: training with sample grids and exports
trainer.py         the training loop
setup.py           the objects that the loop uses: data.py, model.py, optim.py, checkpointing.py, progress.py
step.py            one training step
callbacks.py       the callback interface; gap, metrics, grid, export, snapshots and console implement it
experiment.py      the config of a run, and overrides of its fields; config.py: its `train` fields
rundir.py          the run folder: config, lock, metrics file
plan/              `imagen plan`: the resources that a run needs, computed without the machine
"""
