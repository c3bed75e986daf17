"""A small order service, written from a seed: seven modules, their tests, a database, and one bug that a test catches.

The code is filled in from the templates under `lab/data/order_service`. The seed decides the names, the numbers, the
database's rows, and which bug is put in. All draws come from `random.Random`, which gives the same values for the same
seed on every machine and Python version.
"""

import datetime
import json
from dataclasses import dataclass
from random import Random
from string import Template

from minstate.lab.paths import DATA

SOURCE = DATA / "order_service"
WORDS = json.loads((SOURCE / "words.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Bug:
    """One wrong line, and its effects."""

    module: str
    right: str
    wrong: str
    complaint: str  # of somebody in the shop
    touched: str  # an SQL condition on the affected rows of `orders o`


BUGS = [
    Bug(
        "pricing",
        "if quantity >= $BULK_FROM:",
        "if quantity > $BULK_FROM:",
        "orders of exactly $bulk_from pieces are charged in full, though our price list promises $bulk_percent % off",
        "o.quantity = $bulk_from",
    ),
    Bug(
        "pricing",
        "return (net * $TAX_PERCENT + 50) // 100",
        "return net * $TAX_PERCENT // 100",
        "the tax on many orders is one cent lower than our accountant's, who rounds half a cent up at $tax_percent %",
        "o.net * $tax_percent % 100 >= 50",
    ),
    Bug(
        "shipping",
        "return (grams + $PARCEL_GRAMS - 1) // $PARCEL_GRAMS",
        "return grams // $PARCEL_GRAMS",
        "the carrier bills one parcel more than we charge as soon as a load is a little over $parcel_grams grams",
        "o.grams % $parcel_grams > 0",
    ),
    Bug(
        "stock",
        "return on_hand <= $REORDER_LEVEL",
        "return on_hand < $REORDER_LEVEL",
        "shelves that are down to $reorder_level pieces don't appear on the reorder list until one more is sold",
        "o.sku IN (SELECT sku FROM stock WHERE on_hand = $reorder_level)",
    ),
    Bug(
        "loyalty",
        "return net // $CENTS_PER_POINT",
        "return -(-net // $CENTS_PER_POINT)",
        "customers are given a point too many; a started step of $cents_per_point cents should earn nothing",
        "o.net % $cents_per_point > 0",
    ),
    Bug(
        "invoices",
        "charged = max(0, days_late - $GRACE_DAYS)",
        "charged = max(0, days_late)",
        "people who paid a few days late were charged a fee, though the first $grace_days days are meant to be free",
        "o.days_late > 0",
    ),
    Bug(
        "returns",
        "if days <= $FULL_DAYS:",
        "if days < $FULL_DAYS:",
        "goods sent back on day $full_days were paid out at $part_percent %, though that day still counts in full",
        "o.returned_after = $full_days",
    ),
]


@dataclass(frozen=True)
class CodeBase:
    """An order service as the seed has drawn it."""

    names: dict[str, str | int]  # and numbers, by their key in the templates
    files: dict[str, str]  # texts by path
    tables: dict[str, list[tuple]]  # each as a row of column names, then the rows of values
    bug: Bug


def write_code_base(random: Random) -> CodeBase:
    """Draw names, numbers, rows and a bug, and write the code with that bug."""
    names, articles = draw_names(random)
    template = random.choice(BUGS)
    bug = Bug(**{field: Template(text).substitute(names) for field, text in vars(template).items()})
    files = {}
    for path in sorted(SOURCE.rglob("*.tmpl")):
        name = path.relative_to(SOURCE).as_posix().removesuffix(".tmpl").replace("package/", f"{names['package']}/")
        files[name] = Template(path.read_text(encoding="utf-8")).substitute(names)
    path = f"{names['package']}/{bug.module}.py"
    if files[path].count(bug.right) != 1:
        raise ValueError(f"the template of {path} must hold {bug.right!r} exactly once")
    files[path] = files[path].replace(bug.right, bug.wrong)
    return CodeBase(names, files, draw_tables(random, names, articles), bug)


def draw_names(random: Random) -> tuple[dict[str, str | int], list[tuple]]:
    """Return the values of the templates' keys, and the articles of the catalogue as (sku, name, price, grams)."""
    names: dict[str, str | int] = {key: random.choice(choices) for key, choices in WORDS["synonyms"].items()}
    first, second = random.choice(WORDS["first_words"]), random.choice(WORDS["second_words"])
    trade = random.choice(list(WORDS["trades"]))
    kind, goods = WORDS["trades"][trade]["article"], WORDS["trades"][trade]["goods"]
    numbers = random.sample(range(1000, 9999), 8)
    articles = [
        (f"{kind[0]}{number}", good, random.randrange(241, 4900, 4), random.randrange(120, 2600, 20))
        for number, good in zip(numbers[1:], random.sample(goods, 7), strict=True)
    ]
    names |= {
        "package": first + second,
        "shop": f"{first.title()} {second.title()}",
        "class_prefix": first.title() + second.title(),
        "trade": trade,
        "Item": kind,
    }
    names |= draw_rules(random)
    names |= draw_examples(random, names, articles, unknown_sku=f"{kind[0]}{numbers[0]}")
    return names, articles


def draw_rules(random: Random) -> dict[str, int]:
    """Return the numbers of the shop's rules: limits, prices, percentages and days."""
    return {
        "bulk_from": random.randrange(8, 30),
        "bulk_percent": random.randrange(4, 16),
        "tax_percent": random.randrange(6, 24),
        "parcel_grams": random.randrange(3000, 9000, 250),
        "few_grams": random.randrange(20, 400),
        "freight_town": random.randrange(250, 450, 5),
        "freight_county": random.randrange(460, 800, 5),
        "freight_abroad": random.randrange(1200, 2400, 10),
        "free_from": random.randrange(9000, 20000, 500),
        "reorder_level": random.randrange(5, 25),
        "lot": random.randrange(4, 30),
        "cents_per_point": random.randrange(110, 400, 10),
        "gold_from": random.randrange(300, 1200, 10),
        "plain_worth": random.randrange(1, 4),
        "gold_worth": random.randrange(4, 8),
        "grace_days": random.randrange(3, 15),
        "fee_per_day": random.randrange(15, 90, 5),
        "fee_cap": random.randrange(900, 2500, 50),
        "full_days": random.randrange(7, 22),
        "part_days": random.randrange(28, 61),
        "part_percent": random.randrange(40, 85, 5),
        "refund_example": random.randrange(1500, 9900),
    }


def draw_examples(random: Random, names: dict, articles: list[tuple], unknown_sku: str) -> dict[str, str | int]:
    """Return the catalogue as code, and the values that the tests use."""
    kind, rate = names["Item"], names["tax_percent"]
    sku, good, price, _ = random.choice(articles)
    # The tax of both amounts has a fraction of at least half a cent, so a test sees whether it is rounded up.
    example, second = random.sample([net for net in range(1000, 9000) if net * rate % 100 >= 50], 2)
    return {
        "item_lines": "\n".join(f'    {kind}("{a}", "{b}", {c}, {d}),' for a, b, c, d in articles),
        "sku": sku,
        "sku_name": good,
        "sku_word": good.replace(" ", "_"),
        "two_pieces": 2 * price,
        "unknown_sku": unknown_sku,
        "tax_example": example,
        "tax_rounded": (example * rate + 50) // 100,
        "second_example": second,
        "second_rounded": (second * rate + 50) // 100,
    }


def draw_tables(random: Random, names: dict[str, str | int], articles: list[tuple]) -> dict[str, list[tuple]]:
    """Return customers, orders and stock, each as a row of column names, then the rows of values.

    Every customer has an order. For each bug, some rows lie exactly on its boundary (a quantity, a stock level, a day).
    """
    towns = random.sample(WORDS["towns"], 6)
    companies = [f"{town} {company}" for town in towns for company in WORDS["companies"]]
    customers = [
        (number, name, random.choice(["town", "county", "abroad"]))
        for number, name in enumerate(random.sample(companies, 14), 1)
    ]
    low = names["reorder_level"]
    stock = [(sku, low if n < 3 else random.randrange(low + 1, 120)) for n, (sku, *_) in enumerate(articles)]
    start = datetime.date(2031, 1, 1) + datetime.timedelta(days=random.randrange(1000))
    orders = []
    for number in range(90):
        sku, _, price, grams = random.choice(articles)
        customer = customers[number] if number < len(customers) else random.choice(customers)
        quantity = random.choice([1, 2, 3, 5, names["bulk_from"], names["bulk_from"] + 3])
        orders.append(
            (
                random.randrange(10) + 10 * number + 1000,
                customer[0],
                str(start + datetime.timedelta(days=number // 2)),
                sku,
                quantity,
                price * quantity,
                grams * quantity,
                random.choice([0, 0, 0, 2, names["grace_days"], names["grace_days"] + 6]),
                random.choice([None, None, None, None, names["full_days"], names["part_days"] - 1]),
            )
        )
    return {
        "customers": [("id", "name", "zone"), *customers],
        "orders": [
            ("id", "customer_id", "placed_on", "sku", "quantity", "net", "grams", "days_late", "returned_after"),
            *orders,
        ],
        "stock": [("sku", "on_hand"), *random.sample(stock, len(stock))],
    }
