"""Which extra of the package brings a module. Nothing here needs JAX."""

EXTRAS = {
    "train": (
        "cattrs",
        "datasets",
        "filelock",
        "flax",
        "grain",
        "huggingface_hub",
        "jinja2",
        "optax",
        "orbax",
        "pyarrow",
        "rich",
        "safetensors",
        "tokenizers",
        "tomli_w",
        "transformers",
        "tyro",
    ),
    "gguf": ("gguf",),
    "plots": ("matplotlib",),
    "tensorboard": ("tensorboardX",),
    "wandb": ("wandb",),
}


def install_command(extra: str) -> str:
    """How a reader gets an extra. No package index has this package, so it comes from a clone.

    Example:
        >>> install_command("plots")
        "in a clone of selecttkd_jax: pip install '.[plots]'"
    """
    return f"in a clone of selecttkd_jax: pip install '.[{extra}]'"


def what_to_install(error: ModuleNotFoundError) -> str | None:
    """One line for the command line where an import found nothing; None where no extra would help.

    Example:
        >>> what_to_install(ModuleNotFoundError("No module named 'orbax'", name="orbax.checkpoint"))
        "this command needs orbax; in a clone of selecttkd_jax: pip install '.[train]'"
    """
    module = (error.name or "").partition(".")[0]
    for extra, modules in EXTRAS.items():
        if module in modules:
            return f"this command needs {module}; {install_command(extra)}"
    return None
