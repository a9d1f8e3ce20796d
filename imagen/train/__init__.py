"""Training of one stage.

trainer.py     setup, the loop, and what happens at intervals
step.py        the training step
noising.py     a batch to the network's inputs and its loss
randomness.py  every random number as a function of (seed, global position)
optim.py, ema.py, checkpoint.py, validation.py, logging.py, stopping.py: one thing each
rundir.py      the RUN folder: whose it is, and its metrics
"""
