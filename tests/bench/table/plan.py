"""What is compared with what, and the bar that each comparison has to pass."""

from dataclasses import dataclass

from tests.bench.table.inputs import DISTRIBUTIONS

DIM = 32
SMALL, LARGE = 4_096, 262_144
IDS = 1 << 20  # ids a measurement: four large batches, or 256 small ones
MANY = 4 * IDS  # where threads share them


@dataclass(frozen=True)
class Side:
    """Who does what: a contender over so many keys, and its case."""

    contender: str
    case: str
    scale: float = 1.0  # of the number of keys of the whole run
    dim: int = DIM

    @property
    def place(self) -> tuple[str, float, int]:
        """Sides of one comparison with the same place are one process."""
        return self.contender, self.scale, self.dim


@dataclass(frozen=True)
class Comparison:
    """One line of results for each distribution and batch."""

    case: str
    ours: Side
    rival: Side
    title: str  # of the rival
    bar: float | None  # least ratio of our rate to the rival's
    rounds: int = 7
    ids: int = IDS  # ids a measurement
    distributions: tuple[str, ...] = DISTRIBUTIONS
    batches: tuple[int, ...] = (SMALL, LARGE)
    whole: bool = False  # as many ids as there are keys instead
    fill: bool = True  # the contenders hold all keys beforehand
    at_load: bool = False  # of memory alone, at the number of keys where our index is fullest


def at_highest_load(keys: int) -> int:
    """The next number of keys at which the index is as full as it gets: 17 · 2ᵏ, less a few.

    It has 10 places a pair of buckets and begins to split pairs at a load of 0.85 of 2ᵏ pairs; between these numbers
    the load is lower, which cases with a plain number of keys show (infra/docs/decisions/0005).
    """
    full = 17
    while full < keys:
        full *= 2
    return full - full // 1_000


KNOWN = "torch.index_select"
DICT = "dict + NumPy rows"
MANAGED = "TorchRec MCH"
LOOKUP = "our pure lookup"
ADAGRAD = "torch.optim.Adagrad, sparse"

PLAN = (
    Comparison("memory", Side("ours", ""), Side("index_select", ""), KNOWN, None, distributions=(), at_load=True),
    Comparison("lookup", Side("ours", "lookup"), Side("index_select", "lookup"), f"{KNOWN}, new tensor", 0.7),
    Comparison("lookup", Side("ours", "lookup_out"), Side("index_select", "lookup_out"), f"{KNOWN}, out=", 0.7),
    Comparison(
        "lookup", Side("ours", "lookup_out"), Side("index_select", "lookup_out_huge"), f"{KNOWN}, out=, huge", None
    ),
    Comparison("lookup", Side("ours", "lookup"), Side("dict", "lookup"), f"{DICT}, new array", 8, 3),
    Comparison("lookup", Side("ours", "lookup_out"), Side("dict", "lookup_out"), f"{DICT}, out=", 8, 3),
    Comparison("lookup", Side("ours", "lookup"), Side("torchrec", "lookup"), f"{MANAGED}, whole module", 5, 5),
    Comparison("find", Side("ours", "find"), Side("torchrec", "find"), f"{MANAGED}, remap alone", None, 5),
    Comparison("insert", Side("ours", "insert"), Side("dict", "insert"), DICT, 8, 5, whole=True, fill=False),
    Comparison(
        "insert",
        Side("ours", "insert"),
        Side("dict", "insert_alone"),
        "dict alone, no rows",
        None,
        3,
        distributions=("uniform",),
        whole=True,
        fill=False,
    ),
    Comparison("1 % new", Side("ours", "upsert"), Side("ours", "lookup"), f"{LOOKUP}, new array", 0.8, 11),
    Comparison("1 % new", Side("ours", "upsert_out"), Side("ours", "lookup_out"), f"{LOOKUP}, out=", 0.8, 11),
    Comparison(
        "1 % new, rows expire", Side("expiring", "upsert"), Side("expiring", "lookup"), f"{LOOKUP}, new array", 0.8, 11
    ),
    Comparison(
        "1 % new, rows expire",
        Side("expiring", "upsert_out"),
        Side("expiring", "lookup_out"),
        f"{LOOKUP}, out=",
        0.8,
        11,
    ),
    Comparison("adagrad", Side("ours", "adagrad"), Side("torch_adagrad", "adagrad"), ADAGRAD, 3, 3),
    Comparison(
        "adagrad, sums known",
        Side("ours", "adagrad_summed"),
        Side("torch_adagrad", "adagrad_summed"),
        ADAGRAD,
        3,
        3,
    ),
    Comparison(
        "two threads", Side("ours", "two_threads"), Side("ours", "lookup_out"), "our one thread", 1.7, 11, ids=MANY
    ),
    Comparison(  # an interpreter and a lock for each of the rivals: what threads lose to each other would show
        "two threads, against processes",
        Side("ours", "two_threads"),
        Side("ours", "two_processes"),
        "our two processes",
        None,
        11,
        ids=MANY,
    ),
    Comparison(
        "two threads, known rows",
        Side("index_select", "two_threads"),
        Side("index_select", "lookup_out"),
        f"{KNOWN}, one thread",
        None,
        ids=MANY,
    ),
    Comparison(
        "two threads, bare lines", Side("lines", "two_threads"), Side("lines", "lookup"), "one thread", None, ids=MANY
    ),
    Comparison(
        "two threads, arithmetic alone",
        Side("lines", "arithmetic_of_two"),
        Side("lines", "arithmetic"),
        "one thread",
        None,
        11,
        ids=MANY,
        distributions=("uniform",),
    ),
    Comparison(
        "find, 64 x the keys",
        Side("ours", "find", 8.0, 1),
        Side("ours", "find", 0.125, 1),
        "1/64 of the keys",
        0.5,
        11,
    ),
    Comparison(  # a line of 64 bytes for each 16: as much memory as the index has for so many keys
        "bare lines, 64 x the memory",
        Side("lines", "lookup", 8.0, 4),
        Side("lines", "lookup", 0.125, 4),
        "1/64 of the memory",
        None,
        11,
        distributions=("uniform",),
    ),
)
