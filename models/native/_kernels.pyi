def attend(
    query: int,
    keys: int,
    values: int,
    tables: int,
    ends: int,
    output: int,
    rows: int,
    stride: int,
    heads: int,
    kv_heads: int,
    size: int,
    width: int,
    most: int,
    window: int,
    scale: float,
    wide: bool,
    threads: int,
    /,
) -> None: ...
def attend_tiles(
    query: int,
    keys: int,
    values: int,
    tables: int,
    ends: int,
    parts: int,
    output: int,
    count: int,
    stride: int,
    heads: int,
    kv_heads: int,
    size: int,
    width: int,
    most: int,
    window: int,
    scale: float,
    threads: int,
    /,
) -> None: ...
def has_tiles() -> bool: ...
def rotate(
    states: int,
    cosine: int,
    sine: int,
    slots: int,
    keys: int,
    values: int,
    tokens: int,
    heads: int,
    kv_heads: int,
    width: int,
    wide: bool,
    threads: int,
    /,
) -> None: ...
def rms_norm(
    hidden: int, weight: int, output: int, rows: int, width: int, eps: float, wide: bool, threads: int, /
) -> None: ...
def gated_silu(joined: int, output: int, rows: int, width: int, wide: bool, threads: int, /) -> None: ...
def multiply_tiles(
    states: int, weight: int, bias: int, output: int, rows: int, inputs: int, outputs: int, threads: int, /
) -> None: ...
def weigh_rows(states: int, weight: int, bias: int, output: int, rows: int, width: int, wide: bool, /) -> None: ...
