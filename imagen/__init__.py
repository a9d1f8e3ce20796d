"""Imagen: text-to-image diffusion cascades in pixel space (arXiv 2205.11487)."""

__version__ = "0.1.0"
