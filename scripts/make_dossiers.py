"""Make the data of `configs/dossiers.yaml`: short texts about persons, and questions on them.

`python scripts/make_dossiers.py` writes `configs/data/dossiers.jsonl`, in the form of SQuAD. Each
text tells four things of a person, in random order and words; a question asks for one of them. Home
and place of birth are both towns, so that not even the kind of word tells the answer.
"""

import json
import random
from pathlib import Path

FIRST = [
    "Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gina", "Hugo", "Iris", "Jack", "Kate", "Liam",
    "Mona", "Nils", "Olga", "Paul", "Rita", "Sam", "Tina", "Umar", "Vera", "Will", "Xenia",
    "Yara", "Zoe", "Karl", "Lucy", "Max", "Nora", "Otto",
]  # fmt: skip
LAST = [
    "Adler", "Brook", "Costa", "Dunn", "Ellis", "Frost", "Grant", "Hale", "Irwin", "Jonas",
    "Keller", "Lopez", "Marsh", "Nolan", "Olsen", "Park", "Quinn", "Reyes", "Stone", "Tate",
    "Usher", "Vogel", "Walsh", "Young", "Zeller",
]  # fmt: skip
TOWNS = [
    "Paris", "London", "Berlin", "Madrid", "Rome", "Vienna", "Prague", "Lisbon", "Dublin",
    "Athens", "Oslo", "Helsinki", "Warsaw", "Budapest", "Zurich", "Geneva", "Boston", "Chicago",
    "Denver", "Seattle", "Toronto", "Montreal", "Sydney", "Melbourne", "Tokyo", "Osaka", "Cairo",
    "Nairobi", "Lima", "Havana",
]  # fmt: skip
WORKS = [
    f"{a} {b}"
    for a in ("Northern", "Golden", "Silver", "United", "Pacific", "Royal", "Central")
    for b in ("Bank", "Airlines", "Motors", "Foods", "Press", "Textiles")
]
PETS = [
    f"{a} {b}"
    for a in ("black", "white", "old", "young", "grey", "small")
    for b in ("cat", "dog", "horse", "parrot", "rabbit", "turtle")
]
HOBBIES = [
    "playing the piano", "painting with oil", "growing roses", "baking bread", "climbing rocks",
    "rowing", "collecting stamps", "playing chess", "dancing tango", "diving",
    "riding a bicycle", "writing poems", "singing in a choir", "fishing", "running marathons",
    "watching birds",
]  # fmt: skip
YEARS = [str(year) for year in range(1931, 2004)]

THINGS = {
    "home": (
        TOWNS,
        ["{} lives in *.", "* is the home of {}.", "The house of {} stands in *."],
        ["Where does {} live?", "In which town is {} at home?", "Where is the house of {}?"],
    ),
    "birth": (
        TOWNS,
        ["{} was born in *.", "The family of {} comes from *.", "* is where {} came to the world."],
        ["Where was {} born?", "In which town was {} born?", "What is the birthplace of {}?"],
    ),
    "year": (
        YEARS,
        ["{} has lived here since *.", "In *, {} moved here.", "It was in * that {} arrived."],
        ["When did {} move here?", "In which year did {} arrive?", "Since when has {} lived here?"],
    ),
    "work": (
        WORKS,
        [
            "{} works for *.",
            "* pays the wages of {}.",
            "Every morning {} drives to the office of *.",
        ],
        ["Who employs {}?", "Which company does {} work for?", "Where does {} work?"],
    ),
    "pet": (
        PETS,
        ["{} owns a *.", "At home, a * waits for {}.", "{} never travels without a *."],
        ["Which animal does {} have?", "What is the pet of {}?", "What kind of pet does {} own?"],
    ),
    "hobby": (
        HOBBIES,
        ["{} enjoys *.", "On Sundays, {} spends hours *.", "For {}, nothing is better than *."],
        ["What does {} like to do?", "What is the hobby of {}?", "How does {} spend free time?"],
    ),
}


def make_dossiers(path: Path, count: int = 150) -> None:
    """Write questions as JSON lines; equal for every call.

    Args:
        path: The file.
        count: Number of texts, each with four questions.
    """
    draw = random.Random(0)
    lines = [json.dumps(row) for number in range(count) for row in _rows(number, draw)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def _rows(number: int, draw: random.Random) -> list[dict[str, object]]:
    """Return the questions on one text."""
    person = f"{draw.choice(FIRST)} {draw.choice(LAST)}"
    text, answers = "", dict[str, tuple[str, int]]()
    for thing in draw.sample(list(THINGS), 4):
        values, sentences, _ = THINGS[thing]
        value = draw.choice(values)
        before, _, behind = draw.choice(sentences).format(person).partition("*")
        answers[thing] = (value, len(text) + len(before))
        text += f"{before}{value}{behind} "
    return [
        {
            "text_number": number,
            "question": draw.choice(THINGS[thing][2]).format(person),
            "context": text.rstrip(),
            "answers": {"text": [value], "answer_start": [start]},
        }
        for thing, (value, start) in answers.items()
    ]


if __name__ == "__main__":
    place = Path(__file__).resolve().parents[1] / "configs" / "data" / "dossiers.jsonl"
    make_dossiers(place)
    print(f"made {place.name} in {place.parent}")
