"""Byte counts as text: binary units for memory and free disk space, decimal units for files and downloads."""


def binary_size(count: float) -> str:
    """Return ``3.2 GiB`` for 3.2 times 2**30 bytes."""
    return _scaled(count, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def decimal_size(count: float) -> str:
    """Return ``3.2 GB`` for 3.2 times 10**9 bytes."""
    return _scaled(count, 1000, ("B", "kB", "MB", "GB", "TB"))


def _scaled(count: float, step: int, units: tuple[str, ...]) -> str:
    unit, *larger = units
    if count < step:
        return f"{count:.0f} {unit}"
    while count >= step and larger:
        count /= step
        unit = larger.pop(0)
    return f"{count:.1f} {unit}"
