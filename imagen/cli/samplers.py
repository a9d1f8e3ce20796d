"""The samplers' names for help and completion, without importing torch."""


def sampler_names() -> tuple[str, ...]:
    """Names that `--sampler` takes."""
    return ("ddpm", "ddim", "dpmpp_2m", "dpmpp_2m_sde", "heun")
