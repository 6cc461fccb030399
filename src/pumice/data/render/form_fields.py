"""What forms ask for: labels as printed, how a field is named in questions, and what stands in it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from pumice.data.render import values
from pumice.data.render.fonts import Split

Draw = Callable[[random.Random, Split], str]


@dataclass(frozen=True)
class Kind:
    """A kind of field: labels as printed, the noun of its questions, a drawer of values, and the task it counts for."""

    labels: str
    noun: str
    make: Draw
    task: str
    extra: str = ""


def _closed(options: str) -> Draw:
    choices = options.split(",")
    return lambda rng, split: rng.choice(choices)


def _amount(rng: random.Random, split: Split) -> str:
    return rng.choice(values.CURRENCIES).show(values.cents(rng, 300, 2_000_000))


def _name(rng: random.Random, split: Split) -> str:
    return values.person(rng, split)


def _country(rng: random.Random, split: Split) -> str:
    return rng.choice(values.vocabulary("country", split))


def _job(rng: random.Random, split: Split) -> str:
    return rng.choice(values.vocabulary("job", split))


def _quantity(rng: random.Random, split: Split) -> str:
    return str(rng.choice((rng.randint(1, 20), rng.randint(1, 400), rng.randint(100, 9999))))


def _time(rng: random.Random, split: Split) -> str:
    return f"{rng.randint(0, 23):02}:{rng.randrange(0, 60, 5):02}"


STAFF = "Sales,Finance,Support,Research,Legal,Design,Logistics,Marketing,Security,Planning,Archive,Quality,Training"
STATES = "Open,Closed,Paid,Unpaid,Pending,Approved,Rejected,Shipped,Draft,Active,On hold,Done,Late,New,Cancelled"
KINDS = (
    Kind("Name|Full name|Name", "name", _name, "name", "|Who is named on the form?|Who?"),
    Kind("Customer|Client|Patient|Member|Guest|Student", "", _name, "name"),
    Kind("Contact|Manager|Agent|Owner|Teacher|Author|Doctor", "", _name, "name"),
    Kind("City|City|Town|Place", "city", values.city, "city", "|Which city is given?|Which city?"),
    Kind("From|Origin|Departure", "origin", values.city, "city"),
    Kind("To|Destination|Arrival", "destination", values.city, "city"),
    Kind("Date|Date|Issued|Issue date", "date", values.date, "date", "|When is the form dated?|Date?"),
    Kind("Due|Due date|Deadline|Valid until", "due date", values.date, "date"),
    Kind("Phone|Tel.|Telephone|Mobile", "phone number", values.phone, "code", "|Phone?"),
    Kind("Order no.|Order|Order number|Order ID", "order number", values.code, "code"),
    Kind("Invoice|Invoice no.|Invoice #", "invoice number", values.code, "code"),
    Kind("Ref|Reference|Case no.|Code", "", values.code, "code"),
    Kind("Customer ID|Account|Member no.|Ticket|Serial no.", "", values.code, "code"),
    Kind("Amount|Amount|Total|Amount due|Price", "", _amount, "amount", "|How much is it?|What amount is stated?"),
    Kind("Fee|Deposit|Balance|Rent|Salary|Discount", "", _amount, "amount"),
    Kind("Company|Company|Firm|Employer", "company", values.company, "shop", "|Which company is it?"),
    Kind("Shop|Store|Supplier|Vendor|Seller", "", values.shop, "shop"),
    Kind("Email|E-mail|Mail", "email address", values.email, "field", "|Email?"),
    Kind("Country|Country|Nationality", "country", _country, "field", "|Which country?"),
    Kind("Department|Dept.|Team|Division", "department", _closed(STAFF), "field", "|Which department?"),
    Kind("Status|Status|State", "status", _closed(STATES), "field", "|Status?"),
    Kind("Job|Position|Role", "job", _job, "field"),
    Kind("Quantity|Qty|Units|Pieces", "quantity", _quantity, "field", "|How many are there?"),
    Kind(
        "Room|Seat|Gate|Desk", "", lambda rng, split: values.stamp(rng, rng.choice(("##", "?#", "###", "##?"))), "field"
    ),
    Kind("Time|Time|Start", "time", _time, "field", "|At what time?"),
    Kind("Item|Product|Article", "product", values.product, "item", "|Which product is it?"),
)
