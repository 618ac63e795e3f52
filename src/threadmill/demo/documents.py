"""What the demo's company has written down, as files of several kinds."""

import io
import zipfile
from xml.sax.saxutils import escape

RETURNS = """\
# Returns and refunds

Customers may send back anything within 30 days of delivery. The bicycle must be clean and must not
have been ridden further than around the block; parts and clothing must be unused, with their tags.

## How it goes

1. Open a return in your account, or ask support to open one.
2. Print the label. Parcels up to 30 kg are picked up; a bicycle travels in the box it came in.
3. The refund is made within five working days after the parcel has arrived at our workshop in
   Halden. It goes back to the card or the account that paid.

## What is not taken back

Made-to-measure frames, opened tubes of grease, and helmets whose box was opened are not taken back,
unless they are faulty. Electric bicycles are taken back with a battery that is charged to half.

## Exchanges

A size can be exchanged once, free of charge, within 60 days. We send the new one on the day on
which the old one is on its way, so nobody is without a bicycle for longer than a weekend.
"""

SHIPPING = """\
# Shipping

Orders that are placed before 14:00 leave the same day. Within Norway and Sweden a parcel takes two
to three working days, in the rest of Europe four to seven. Bicycles are delivered by appointment.

| destination | parcel | bicycle |
|---|---|---|
| Norway, Sweden | 49 kr | free |
| European Union | 9 € | 39 € |
| United Kingdom | 12 € | 59 €, customs included |

Late delivery: if a parcel has not moved for three working days, we ask the carrier. If it is not
found within ten working days, we send everything again at our expense.

To Switzerland we do not deliver bicycles, because the carrier does not clear batteries there.
"""

WARRANTY = """\
# Warranty

Frames are covered for ten years, components for two, batteries for two years or 500 charging
cycles, whichever comes first. The battery counts as worn when it holds less than 70 % of its rated
capacity within that time.

The warranty covers faults of material and of assembly. It does not cover wear: chains, brake pads,
tyres and cables are expected to be replaced. It ends when the motor was opened by somebody else
than a workshop on our list, or when its speed limit was changed.

To make a claim, send a photograph of the fault and of the frame number, which is stamped under the
bottom bracket. We answer within two working days.
"""

SIZES = """\
# Which size fits

Measure the inside of your leg without shoes, and multiply by 0.66: that is the length of the seat
tube in centimetres.

| height | city and touring | gravel |
|---|---|---|
| 155 to 165 cm | S | 50 |
| 165 to 175 cm | M | 53 |
| 175 to 186 cm | L | 56 |
| over 186 cm | XL | 59 |

Between two sizes the smaller one is nimbler, the larger one more comfortable on long tours. The
size can be exchanged once.
"""

WORKSHOP = [
    (
        "Battery",
        "Charge the battery between 10 and 25 degrees. Below freezing it takes no charge, and the"
        " charger blinks red twice. For storage over the winter charge it to 60 percent and look"
        " again after two months. A battery that was dropped is not to be charged again.",
    ),
    (
        "Firmware",
        "The display shows its version under Settings, About. Version 4.2 mends the error E07,"
        " in which the motor stops on steep climbs. Updates come through the app while the battery"
        " is above 30 percent; the bicycle must not be moved for the six minutes that it takes.",
    ),
    (
        "Error codes",
        "E01: the speed sensor has lost its magnet; it belongs within 15 mm of the sensor. E04: the"
        " torque sensor must be calibrated, with no foot on the pedals while the bicycle is"
        " switched on. E07: the motor is too hot, or its firmware is older than 4.2. E21: the"
        " battery does not answer; clean its contacts with a dry cloth.",
    ),
    (
        "Brakes",
        "New pads need thirty stops from 25 km/h before they bite. Bleed the line once a year with"
        " mineral oil, never with DOT fluid, which destroys the seals. Discs thinner than 1.5 mm"
        " are replaced.",
    ),
    (
        "Torque",
        "Stem 5 Nm, seat clamp 6 Nm, crank 40 Nm, rear axle 12 Nm, disc screws 4 Nm. Carbon parts"
        " are tightened with paste and with a torque wrench, never by feel.",
    ),
]

STAFF = [
    "How we write to customers",
    "We answer within one working day, in the language in which we were asked, and by first name."
    " We say what happens next and when, and promise no date that the carrier has not given us.",
    "A refund of up to 500 euros is decided by whoever answers. Above that the head of support is"
    " asked first. Goodwill of up to 40 euros needs no reason but a line in the order's notes.",
    "What customers tell us about their health stays in the conversation. It is never copied into"
    " the notes of an order.",
]


def workshop_pdf() -> bytes:
    """A page for each section, in Helvetica."""
    pages = []
    for title, text in WORKSHOP:
        shown = [f"BT /F1 20 Tf 60 770 Td ({_pdf_text(title)}) Tj ET"]
        for at, line in enumerate(_wrapped(text, 84)):
            shown.append(f"BT /F1 11 Tf 60 {730 - 16 * at} Td ({_pdf_text(line)}) Tj ET")
        pages.append("\n".join(shown))
    return _pdf(pages)


def scanned_pdf() -> bytes:
    """Pages without any text, as a scanner leaves them."""
    return _pdf([f"0.9 g 60 {500 - 40 * at} 480 220 re f" for at in range(3)])


def staff_docx() -> bytes:
    head, *paragraphs = STAFF
    body = f'<w:p><w:pPr><w:pStyle w:val="Heading1"/></w:pPr>{_docx_run(head)}</w:p>'
    body += "".join(f"<w:p>{_docx_run(paragraph)}</w:p>" for paragraph in paragraphs)
    document = (
        '<?xml version="1.0" encoding="UTF-8" standalone="yes"?><w:document xmlns:w='
        '"http://schemas.openxmlformats.org/wordprocessingml/2006/main">'
        f"<w:body>{body}</w:body></w:document>"
    )
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", _DOCX_TYPES)
        archive.writestr("_rels/.rels", _DOCX_RELATIONS)
        archive.writestr("word/document.xml", document)
    return made.getvalue()


_DOCX_TYPES = (
    '<?xml version="1.0" encoding="UTF-8" standalone="yes"?><Types xmlns='
    '"http://schemas.openxmlformats.org/package/2006/content-types"><Default Extension="rels"'
    ' ContentType="application/vnd.openxmlformats-package.relationships+xml"/><Override'
    ' PartName="/word/document.xml" ContentType="application/vnd.openxmlformats-officedocument'
    '.wordprocessingml.document.main+xml"/></Types>'
)
_DOCX_RELATIONS = (
    '<?xml version="1.0" encoding="UTF-8" standalone="yes"?><Relationships xmlns='
    '"http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="r1"'
    ' Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"'
    ' Target="word/document.xml"/></Relationships>'
)


def _docx_run(text: str) -> str:
    return f"<w:r><w:t>{escape(text)}</w:t></w:r>"


def _wrapped(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def _pdf_text(text: str) -> str:
    return text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")


def _pdf(contents: list[str]) -> bytes:
    """The catalogue, the tree of pages, a font; then a page and what is on it, in turns."""
    kids = " ".join(f"{4 + 2 * at} 0 R" for at in range(len(contents)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(contents)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    for at, content in enumerate(contents):
        objects.append(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Resources << /Font"
            f" << /F1 3 0 R >> >> /Contents {5 + 2 * at} 0 R >>"
        )
        objects.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream")
    made, places = "%PDF-1.4\n", []
    for number, one in enumerate(objects, 1):
        places.append(len(made))
        made += f"{number} 0 obj\n{one}\nendobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    table_at = len(made)
    made += (
        f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}"
        f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{table_at}\n%%EOF\n"
    )
    return made.encode("cp1252")
