"""What `threadmill demo --serve` is about: a small maker of bicycles, its assistants, and what its
customers have asked them in the last thirty days. All of it is invented."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from threadmill.demo.scripted_model import Reply, ToolCall
from threadmill.demo.stand_in import LARGE, SMALL, Exchange
from threadmill.lifecycle import RunStatus

Json = dict[str, Any]

SUPPORT, WORKSHOP, ANALYST, WRITER = "Support", "Workshop", "Analyst", "Copywriter"
SHOP, APP, BACK_OFFICE = "Web shop", "Mobile app", "Back office"
KEYS = (SHOP, APP, BACK_OFFICE)
OLD_KEY = "Prototype (revoked)"

HELP_CENTRE, MANUALS, PLAYBOOK = "Help centre", "Workshop manuals", "Support playbook"

ORDERS_CSV = "day,orders,revenue_eur\n" + "".join(
    f"2026-{month:02}-{day:02},{orders},{orders * 182}\n"
    for month in (9, 10)
    for day in range(1, 29)
    for orders in ((day * 7 + month * 3) % 23 + 9,)
)
WEEKS = [63, 141, 150, 128, 137, 160, 149, 122, 155]  # orders, as a picture shows them


def _function(name: str, about: str, **properties: Json) -> Json:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    function = {"name": name, "description": about, "parameters": parameters}
    return {"type": "function", "function": function}


_NUMBER: Json = {"type": "string", "description": "As it stands in the confirmation: four digits."}
GET_ORDER = _function("get_order", "Where an order is, and what was ordered.", order_number=_NUMBER)
OPEN_RETURN = _function(
    "open_return",
    "Open a return and send the label by mail.",
    order_number=_NUMBER,
    reason={"type": "string", "enum": ["wrong size", "faulty", "changed my mind"]},
)
GET_STOCK = _function(
    "get_stock", "How many pieces of a spare part are on the shelf.", part={"type": "string"}
)


@dataclass(frozen=True)
class AssistantPlan:
    name: str
    versions: Sequence[Json]  # what it was made with, then what each change set
    days_ago: Sequence[float]  # of each version
    stores: Sequence[str] = ()


_SUPPORT_INSTRUCTIONS = (
    "You answer customers of Halden Bikes, a small maker of bicycles.",
    "You answer customers of Halden Bikes, a small maker of bicycles. Be brief and friendly.\n"
    "Look into the help centre before you speak of rules.",
    "You answer customers of Halden Bikes, a small maker of bicycles. Be brief and friendly, in the"
    " customer's language.\n\n- Look into the help centre before you speak of rules, and cite it.\n"
    "- Look up an order before you say anything about it.\n"
    "- Never promise a date that the carrier has not given.",
)

ASSISTANTS = (
    AssistantPlan(
        SUPPORT,
        (
            {
                "model": SMALL,
                "description": "Answers customers of the web shop and of the app.",
                "instructions": _SUPPORT_INSTRUCTIONS[0],
                "tools": [{"type": "file_search"}],
                "metadata": {"team": "support"},
            },
            {
                "instructions": _SUPPORT_INSTRUCTIONS[1],
                "tools": [{"type": "file_search"}, GET_ORDER],
            },
            {"model": LARGE, "temperature": 0.3},
            {
                "instructions": _SUPPORT_INSTRUCTIONS[2],
                "tools": [{"type": "file_search"}, GET_ORDER, OPEN_RETURN],
            },
        ),
        (31, 24, 16, 5),
        (HELP_CENTRE,),
    ),
    AssistantPlan(
        WORKSHOP,
        (
            {
                "model": LARGE,
                "description": "Knows the manuals and the shelf.",
                "instructions": "You help mechanics. Give torques with their unit. Cite the page.",
                "tools": [{"type": "file_search"}, GET_STOCK],
                "metadata": {"team": "workshop"},
            },
            {"temperature": 0.0},
        ),
        (29, 11),
        (MANUALS,),
    ),
    AssistantPlan(
        ANALYST,
        (
            {
                "model": LARGE,
                "description": "Counts and draws.",
                "instructions": "You work with tables. Say what you have counted, in one sentence.",
                "tools": [{"type": "code_interpreter"}],
                "metadata": {"team": "sales"},
            },
        ),
        (27,),
    ),
    AssistantPlan(
        WRITER,
        (
            {
                "model": SMALL,
                "description": "Writes texts for the shop.",
                "instructions": "You write short texts about bicycles, without superlatives.",
                "temperature": 0.9,
                "metadata": {"team": "marketing"},
            },
            {"instructions": "You write short texts about bicycles. No superlatives, no emoji."},
        ),
        (30, 8),
    ),
)


@dataclass(frozen=True)
class Conversation:
    assistant: str
    days_ago: float
    exchanges: Sequence[Exchange]
    metadata: Mapping[str, str] = field(default_factory=dict)
    key: str = SHOP
    attached: Mapping[str, str] = field(default_factory=dict)  # for the code of the first message


def _search(*queries: str) -> ToolCall:
    return ToolCall("file_search", {"queries": list(queries)})


def _order(number: str) -> ToolCall:
    return ToolCall("get_order", {"order_number": number})


_RATE_LIMIT = Reply(
    status=429,
    body={
        "error": {
            "message": "Rate limit reached for stand-in-large in organization org-halden on tokens"
            " per min (TPM): Limit 30000, Used 29120, Requested 1896. Please try again in 2.032s.",
            "type": "tokens",
            "code": "rate_limit_exceeded",
        }
    },
)
_TOO_LONG = Reply(
    status=400,
    body={
        "error": {
            "message": "This model's maximum context length is 8192 tokens. However, your messages"
            " resulted in 9371 tokens. Please reduce the length of the messages.",
            "type": "invalid_request_error",
            "code": "context_length_exceeded",
        }
    },
)

_CHART = """\
import pandas as pd
import matplotlib.pyplot as plt

orders = pd.read_csv("/mnt/data/orders.csv", parse_dates=["day"])
by_week = orders.set_index("day").resample("W")["orders"].sum()
plt.figure(figsize=(8, 4))
plt.bar(by_week.index.strftime("%d %b"), by_week, color="#2f6f6a")
plt.ylabel("orders a week")
plt.tight_layout()
plt.show()
print(by_week.describe().round(1).to_string())
"""
_COUNT = """\
import pandas as pd

orders = pd.read_csv("/mnt/data/orders.csv", parse_dates=["day"])
print(orders.groupby(orders["day"].dt.month)[["orders", "revenue_eur"]].sum())
"""
CHART_QUESTION = "Draw the orders per week of the last two months."
CHART_ANSWER = (
    "That is what came in each week. The first and the last one are not whole weeks, so they look"
    " weaker than they were."
)

_SENT: Json = {
    "order": "4711",
    "status": "on its way",
    "carrier": "PostNord",
    "parcel": "Gravel bicycle Fjell 53, black",
    "expected": "within two working days",
}

# --- those that are worth opening ---

_TOLD = (
    Conversation(
        SUPPORT,
        0.08,
        [
            Exchange(
                "Where is my order 4711? It was to arrive yesterday.",
                "Your **Fjell 53** is with PostNord and will be with you within two working days."
                " I am sorry that it is late: if it has not moved for three working days, we ask"
                " the carrier ourselves{cite:shipping.md}, and if it cannot be found within ten, we"
                " send it again at our expense.\n\nIs there anything that you need it for before?",
                [[_order("4711")], [_search("late delivery", "parcel has not moved")]],
                {"get_order": _SENT},
            ),
            Exchange(
                "And if I do not like it when it comes?",
                "Then you may send it back within **30 days** of delivery, clean and ridden no"
                " further than around the block{cite:returns.md}:\n\n1. Open a return in your"
                " account, or ask me to.\n2. It travels in the box that it came in.\n3. The refund"
                " is made within five working days after it has arrived.\n\nIf only the size is"
                " wrong, it can be exchanged once within 60 days, free of charge.",
                [[_search("return a bicycle", "refund how long")]],
            ),
        ],
        {"user": "u_1093", "channel": "web", "language": "en"},
    ),
    Conversation(
        SUPPORT,
        0.02,
        [
            Exchange(
                "Please open a return for order 4698, the size is wrong.",
                "Done.",
                [
                    [_order("4698")],
                    [ToolCall("open_return", {"order_number": "4698", "reason": "wrong size"})],
                ],
                {"get_order": {"order": "4698", "status": "delivered", "parcel": "City bicycle M"}},
                end=RunStatus.REQUIRES_ACTION,
            ),
        ],
        {"user": "u_2210", "channel": "app"},
        APP,
    ),
    Conversation(
        SUPPORT,
        0.35,
        [
            Exchange(
                "Do you deliver a city bicycle to Basel, and what does it cost?",
                end=RunStatus.FAILED,
                refused=_RATE_LIMIT,
            ),
        ],
        {"user": "u_1877", "channel": "web"},
    ),
    Conversation(
        ANALYST,
        0.6,
        [
            Exchange(
                CHART_QUESTION,
                CHART_ANSWER,
                [[ToolCall("code_interpreter", {"code": _CHART})]],
            ),
            Exchange(
                "How much is that a month, in euros?",
                "September and October are close together; the table above has both, and the"
                " revenue is in its last column.",
                [[ToolCall("code_interpreter", {"code": _COUNT})]],
            ),
        ],
        {"team": "sales", "report": "weekly"},
        BACK_OFFICE,
        {"orders.csv": ORDERS_CSV},
    ),
    Conversation(
        WORKSHOP,
        1.1,
        [
            Exchange(
                "The motor stops on steep climbs and the display says E07.",
                "E07 means that the motor is too hot, or that its firmware is older than"
                " 4.2{cite:workshop.pdf}.\n\n- Look under **Settings, About** for the version.\n"
                "- Version 4.2 mends it. The update takes six minutes, and the battery has to be"
                " above 30 %.",
                [[_search("E07 motor stops", "firmware update")]],
            ),
            Exchange(
                "How many torque sensors do we have?",
                "There are **3** on the shelf, in drawer C12.",
                [[ToolCall("get_stock", {"part": "torque sensor"})]],
                {"get_stock": {"part": "torque sensor", "pieces": 3, "drawer": "C12"}},
            ),
        ],
        {"mechanic": "ida", "channel": "tablet"},
        BACK_OFFICE,
    ),
    Conversation(
        SUPPORT,
        1.4,
        [
            Exchange(
                "My battery has lost a third of its range after 18 months. Is that covered?",
                "It may be. Batteries are covered for two years or 500 charging cycles, and count"
                " as worn below 70 % of their rated capacity{cite:warranty.md}. The display shows"
                " both under *Settings, About*. Please send a photograph of it, and of the frame"
                " number under the bottom bracket.",
                [[_search("battery warranty capacity")]],
                refused=_RATE_LIMIT,
                refusals=1,
            ),
        ],
        {"user": "u_0415", "channel": "mail", "language": "en"},
    ),
    Conversation(
        WRITER,
        1.9,
        [
            Exchange(
                "A page about the history of the bicycle for our catalogue, please.",
                "In 1817 a forester from Karlsruhe put two wheels behind each other and ran. It was"
                " called a running machine, and it was faster than a coach on the road to"
                " Schwetzingen. Pedals came half a century later, on the front wheel, which grew"
                " and grew, for the larger it was the further a turn went. Chains ended that: with"
                " them the wheels could be of one size again, and anybody could ride.",
                end=RunStatus.INCOMPLETE,
                options={"max_completion_tokens": 60},
            ),
        ],
        {"team": "marketing"},
        BACK_OFFICE,
    ),
    Conversation(
        SUPPORT,
        2.3,
        [
            Exchange(
                "Can I change the address of order 4655?",
                "",
                [[_order("4655")]],
                end=RunStatus.EXPIRED,
            ),
        ],
        {"user": "u_3001", "channel": "app"},
        APP,
    ),
    Conversation(
        SUPPORT,
        3.2,
        [
            Exchange(
                "Tell me everything about all your bicycles, their parts and where these are made.",
                "Gladly. "
                + "We make three of them: a city bicycle, a touring one, and Fjell. " * 30,
                end=RunStatus.CANCELLED,
                pace_s=0.1,
            ),
            Exchange(
                "Sorry, only the gravel bicycle, please.",
                "**Fjell** has a steel frame, a carbon fork and hydraulic discs. It comes in 50,"
                " 53, 56 and 59; which one fits follows from the inside of your leg, times"
                " 0.66{cite:sizes.md}.",
                [[_search("gravel bicycle size")]],
            ),
        ],
        {"user": "u_1501", "channel": "web"},
    ),
    Conversation(
        WORKSHOP,
        4.4,
        [
            Exchange(
                "Here is the log of the controller, all of it: what is wrong?",
                end=RunStatus.FAILED,
                refused=_TOO_LONG,
            ),
        ],
        {"mechanic": "per"},
        BACK_OFFICE,
    ),
    Conversation(
        WRITER,
        5.2,
        [
            Exchange(
                "Three lines for the newsletter about winter tyres.",
                "The first frost comes at night, and nobody hears it.\n\nStudded tyres hold where"
                " rubber slides, and they last four winters.\n\nWe put them on while you drink a"
                " coffee.",
            ),
            Exchange(
                "Shorter.",
                "Frost makes no noise. Studs do, and they hold. We change them while you wait.",
            ),
        ],
        {"team": "marketing"},
        BACK_OFFICE,
    ),
)

# --- the everyday ones ---

_PARCELS = ("touring bicycle L", "helmet M, grey", "winter tyres, a pair", "child's seat",
            "panniers, black", "brake pads", "city bicycle S", "pump and repair kit")  # fmt: skip
_STATES = (
    ("on its way", "It left us yesterday and is on its way; the carrier says {when}."),
    ("packed", "It is packed and leaves us today, as everything does that is ordered before two."),
    (
        "delivered",
        "The carrier says that it was delivered {when}. Would you look with a neighbour?",
    ),
    (
        "waiting for a part",
        "One part is not here yet. We expect it {when} and send it all at once.",
    ),
)
_WHEN = ("tomorrow", "on Thursday", "within two working days", "at the end of the week")
_ASKED = (
    "Where is order {number}?",
    "Order {number} – when will it be here?",
    "Hei! Any news of {number}?",
    "I ordered a {parcel} (number {number}) and have heard nothing since.",
)
_RULES = (
    ("How long may I take to send something back?",
     "30 days from the delivery, unused and with its tags{cite:returns.md}.", "send back days"),
    ("What does a bicycle cost to the Netherlands?",
     "39 € within the European Union; it is delivered by appointment{cite:shipping.md}.",
     "delivery cost bicycle European Union"),
    ("I am 171 cm tall. M or L?",
     "M, if you are between 165 and 175 cm{cite:sizes.md}. Should it not fit, the size can be"
     " exchanged once.", "size for height 171 cm"),
    ("My chain is worn after a year, is that the warranty?",
     "I am sorry, it is not: chains, pads, tyres and cables are wear{cite:warranty.md}.",
     "warranty chain wear"),
    ("When do I get my money back?",
     "Within five working days after the parcel has arrived at our workshop{cite:returns.md}.",
     "refund working days"),
)  # fmt: skip
_REPAIRS = (
    ("Which torque for the rear axle?", "**12 Nm**{cite:workshop.pdf}.", "torque rear axle"),
    ("The charger blinks red twice.",
     "The battery is below freezing, and takes no charge then{cite:workshop.pdf}. Bring it inside"
     " for two hours.", "charger blinks red"),
    ("May I bleed the brakes with DOT?",
     "**No.** It destroys the seals; these take mineral oil{cite:workshop.pdf}.",
     "bleed brakes DOT mineral oil"),
    ("E21 after the rain.",
     "The battery does not answer. Clean its contacts with a dry cloth{cite:workshop.pdf}.",
     "error E21"),
)  # fmt: skip


def _everyday() -> Iterator[Conversation]:
    numbers = itertools.count(4301, 13)
    for at in range(20):
        number, parcel = str(next(numbers)), _PARCELS[at % len(_PARCELS)]
        status, said = _STATES[at * 3 % len(_STATES)]
        when = _WHEN[at * 5 % len(_WHEN)]
        exchanges = [
            Exchange(
                _ASKED[at % len(_ASKED)].format(number=number, parcel=parcel),
                said.format(when=when),
                [[_order(number)]],
                {"get_order": {"order": number, "status": status, "parcel": parcel, "when": when}},
            )
        ]
        if at % 4 == 1:
            exchanges.append(
                Exchange(f"Thank you! (order {number})", "You are welcome. Ride well!")
            )
        yield Conversation(
            SUPPORT,
            0.9 + at * 1.43,
            exchanges,
            {"user": f"u_{1200 + at * 37}", "channel": ("web", "app", "mail")[at % 3]},
            (SHOP, APP)[at % 2],
        )
    for at, (question, answer, query) in enumerate(_RULES):
        exchange = Exchange(question, answer, [[_search(query)]])
        days_ago = 2.6 + at * 5.1
        metadata = {"user": f"u_{900 + at * 53}", "channel": "web"}
        yield Conversation(SUPPORT, days_ago, [exchange], metadata, SHOP)
    for at, (question, answer, query) in enumerate(_REPAIRS):
        exchange = Exchange(question, answer, [[_search(query)]])
        metadata = {"mechanic": ("ida", "per")[at % 2], "channel": "tablet"}
        yield Conversation(WORKSHOP, 3.7 + at * 6.2, [exchange], metadata, BACK_OFFICE)


# One that goes on while the pages are looked at, and begins anew when it has ended.
LIVE = Conversation(
    WRITER,
    0,
    [
        Exchange(
            "Read me the whole story of the shop, slowly.",
            "Halden lies where the fjord ends, and the shop where the street does. "
            + " ".join(
                f"In {year} a bicycle of ours was ridden from here to {place}, and its owner came"
                " back by train, for the saddle had been left at an inn."
                for year, place in zip(
                    range(1971, 1991),
                    itertools.cycle(("Trondheim", "Gothenburg", "Bergen", "Lübeck", "Narvik")),
                    strict=False,
                )
            ),
            pace_s=0.8,
        ),
    ],
    {"team": "marketing", "live": "yes"},
    BACK_OFFICE,
)

# The oldest first: that is the order of the lists.
CONVERSATIONS = sorted((*_TOLD, *_everyday()), key=lambda one: -one.days_ago)
EXCHANGES = [exchange for one in (*CONVERSATIONS, LIVE) for exchange in one.exchanges]
