"""`selecttkd evaluate`."""

from dataclasses import dataclass

from selecttkd_jax.cli._arguments import ConfigFile, HostOptions, SeveralHosts


@dataclass(frozen=True)
class Evaluate:
    """Held-out KL at temperature 1, cross-entropy, top-1 agreement and acceptance rates of a student."""

    config: ConfigFile
    """A run's config.toml: names the teacher, the held-out data, and the student before training."""
    student: str | None = None
    """Student to evaluate: RUN/student is the trained one. Left out: the config's, the student before training."""
    hosts: SeveralHosts = HostOptions()

    def run(self) -> int:
        """Evaluates and prints a table."""
        from rich.console import Console
        from rich.table import Table

        from selecttkd_jax import runs

        overrides = {} if self.student is None else {"models": {"student": self.student}}
        config = runs.load_config(self.config, overrides)
        first = self.hosts.join(config.mesh.host_timeout)
        table = Table("held-out", "value", title=config.models.student)
        for name, value in runs.evaluate(config).items():
            table.add_row(name, f"{value:,.0f}" if name == "tokens" else f"{value:.4f}")
        if first:
            Console().print(table)
        return 0
