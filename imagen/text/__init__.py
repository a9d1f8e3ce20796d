"""Encode captions and prompts as embeddings.

config.py      the encoder and its options
encoder.py     frozen encoders
files.py       checks of an encoder's files before they are loaded
cleaning.py    cleaning of captions
int8.py        encoder weights in 8 bits
embeddings.py  padding, and the unconditional embedding
vocabulary.py  words of prompts that training never showed
protocol.py    the interface of an encoder
"""
