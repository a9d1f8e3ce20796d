"""Training of one stage.

trainer.py     setup, the loop, and what happens at intervals
step.py        the training step
optim.py, ema.py, checkpoint.py, validation.py, logging.py, stopping.py: one thing each
rundir.py      the RUN folder: whose it is, and its metrics
"""
