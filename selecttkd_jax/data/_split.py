"""Training and held-out records: those of a file of their own, or the last ones of what is learned from."""

from selecttkd_jax._errors import InputError
from selecttkd_jax.data._config import DataConfig, SourceConfig
from selecttkd_jax.data._records import Record, read_records


def read_source(config: DataConfig, source: SourceConfig, held_out: int) -> tuple[list[Record], list[Record]]:
    """The training records of one of `config.training_sources()`, and the last `held_out` ones, which are none.

    Raises:
        InputError: It has no more records than are held out, or those have no response to measure a student on.
    """
    records = _read(config, source.path, source.split, source.columns)
    if not held_out:
        return records, []
    if len(records) <= held_out:
        of_all = f"{held_out} of the {config.held_out_rows}" if config.sources is not None else f"{held_out}"
        raise InputError(
            f"{source.path} has {len(records)} rows, and data.held_out_rows would hold out {of_all} of them; lower it, "
            "or name data.held_out"
        )
    last = records[-held_out:]
    if alone := _first_alone(config, last):
        raise InputError(
            f"{alone} has no response, and a student is measured on the responses of the last {len(last)} rows of "
            f"{source.path}; name data.held_out, rows with responses"
        )
    return records[:-held_out], last


def read_held_out(config: DataConfig) -> list[Record]:
    """The held-out records, and nothing else where they have a file of their own."""
    if config.held_out is None:
        shares = zip(config.training_sources(), count_held_out(config), strict=True)
        return [record for source, count in shares if count for record in read_source(config, source, count)[1]]
    held_out = _read(config, config.held_out, config.held_out_split, config.columns)[: config.held_out_rows]
    if alone := _first_alone(config, held_out):
        raise InputError(f"{alone} has no response, and a student is measured on the held-out responses; add them")
    return held_out


def count_held_out(config: DataConfig) -> list[int]:
    """How many rows of each source are held out: as many of one as of another, whatever its weight.

    So runs with other weights are measured on the same rows.

    Example:
        >>> from selecttkd_jax.data import SourceConfig
        >>> sources = (SourceConfig(path="a", weight=3), SourceConfig(path="b", weight=1))
        >>> count_held_out(DataConfig(sources=sources, held_out_rows=9))
        [5, 4]
    """
    sources = config.training_sources()
    each, more = (0, 0) if config.held_out is not None else divmod(config.held_out_rows, len(sources))
    return [each + (number < more) for number in range(len(sources))]


def _read(config: DataConfig, path: str, split: str | None, columns: tuple[str, ...] | None) -> list[Record]:
    return read_records(path, columns, split or config.train_split, skip_bad_rows=config.skip_bad_rows)


def _first_alone(config: DataConfig, records: list[Record]) -> str | None:
    """Where the first prompt without a response stands, unless such rows can be skipped."""
    alone = [record.source for record in records if not record.response]
    skipped = config.skip_bad_rows and len(alone) < len(records)
    return alone[0] if alone and not skipped else None
