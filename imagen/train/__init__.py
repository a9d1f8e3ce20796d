"""Training of one stage.

run.py             `train_run`: training with sample grids and exports
trainer.py         the training loop
setup.py           what the loop works on: data.py, model.py, optim.py, checkpointing.py, progress.py
step.py            one training step
callbacks.py       the callback protocol, which gap, metrics, grid, export, snapshots and console implement
experiment.py      the config of a run, and its overrides; config.py: its `train` fields
rundir.py          the run folder: config, lock, metrics file
plan/              `imagen plan`: what a run needs, before there is a machine
"""
