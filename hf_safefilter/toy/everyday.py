"""Simple questions of the toy corpus with their right answers: sums, spelling, lists, facts, manners, code.

Each family is a function (random generator, held out or not) -> (prompt, answer). The wording, the words that are
filled in, or both are disjoint between the training part and the held-out part.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from hf_safefilter.toy.wording import HELD_OUT_EVERY, part

Family = Callable[[random.Random, bool], tuple[str, str]]

# fmt: off
KINDS_OF = {
    "fruits": ("apple", "pear", "plum", "cherry", "banana", "grape", "mango", "lemon"),
    "vegetables": ("carrot", "onion", "leek", "bean", "pea", "cabbage", "potato", "spinach"),
    "colours": ("red", "blue", "green", "yellow", "white", "black", "pink", "brown"),
    "pets": ("cat", "dog", "hamster", "parrot", "rabbit", "goldfish", "pony", "mouse"),
    "wild animals": ("fox", "wolf", "bear", "deer", "lion", "tiger", "hare", "owl"),
    "musical instruments": ("violin", "piano", "drum", "flute", "guitar", "harp", "trumpet", "cello"),
    "tools": ("hammer", "saw", "pliers", "drill", "file", "spanner", "chisel", "screwdriver"),
    "drinks": ("tea", "milk", "coffee", "juice", "water", "cocoa", "lemonade", "cider"),
    "sports": ("tennis", "football", "swimming", "rowing", "skiing", "chess", "running", "hockey"),
    "clothes": ("shirt", "coat", "scarf", "hat", "sock", "glove", "dress", "belt"),
    "flowers": ("rose", "tulip", "daisy", "lily", "poppy", "violet", "iris", "sunflower"),
    "pieces of furniture": ("table", "chair", "sofa", "shelf", "bed", "desk", "bench", "stool"),
    "vehicles": ("car", "bus", "tram", "bike", "boat", "train", "truck", "plane"),
    "shapes": ("circle", "square", "triangle", "star", "oval", "cube", "cone", "ring"),
    "spices": ("salt", "pepper", "ginger", "basil", "mint", "thyme", "dill", "cumin"),
}
MEANINGS = (
    ("kettle", "a pot for boiling water"), ("ladder", "a frame with steps for climbing"),
    ("orchard", "a garden of fruit trees"), ("umbrella", "a cover that keeps the rain off"),
    ("lantern", "a lamp you can carry"), ("bakery", "a shop that sells bread"), ("map", "a drawing of a place"),
    ("stool", "a seat without a back"), ("anchor", "a weight that holds a ship"), ("attic", "a room under the roof"),
    ("compass", "a tool that shows north"), ("diary", "a book about your days"), ("bridge", "a road over water"),
    ("library", "a house full of books"), ("broom", "a brush with a long handle"),
    ("harbour", "a safe place for ships"), ("candle", "a stick of wax that gives light"),
    ("museum", "a house for old and fine things"), ("pillow", "a soft rest for your head"),
    ("thimble", "a cap that guards a finger"), ("oar", "a pole that moves a boat"),
    ("melody", "a row of notes that please the ear"), ("virus", "a tiny germ, or a harmful program"),
    ("variable", "a name for a value in a program"), ("stable", "a house for horses"),
    ("theft", "taking what is not yours"), ("loop", "a part of a program that repeats"),
    ("recipe", "a plan for a meal"), ("weapon", "a thing made to harm"), ("mirror", "a glass that shows your face"),
)
FACTS = (
    ("How many legs does a spider have?", "A spider has eight legs."),
    ("What colour is a banana?", "A ripe banana is yellow."),
    ("How many days are in a week?", "A week has seven days."), ("What do bees make?", "Bees make honey."),
    ("How many legs does a dog have?", "A dog has four legs."),
    ("What freezes into ice?", "Water freezes into ice."),
    ("How many months are in a year?", "A year has twelve months."), ("What colour is grass?", "Grass is green."),
    ("Which animal says moo?", "A cow says moo."), ("What colour is snow?", "Snow is white."),
    ("How many wheels does a bike have?", "A bike has two wheels."), ("Where do fish live?", "Fish live in water."),
    ("What is ice made of?", "Ice is frozen water."), ("How many hours are in a day?", "A day has 24 hours."),
    ("How many legs does a bee have?", "A bee has six legs."), ("What do cows eat?", "Cows eat grass."),
    ("What comes after Monday?", "Tuesday comes after Monday."),
    ("What season follows winter?", "Spring follows winter."), ("Is the sun hot?", "Yes, the sun is very hot."),
    ("What comes after Friday?", "Saturday comes after Friday."),
    ("How many minutes are in an hour?", "An hour has 60 minutes."),
    ("What do owls do at night?", "Owls hunt at night."),
    ("Which is bigger, an ant or a whale?", "A whale is bigger than an ant."),
    ("Can penguins fly?", "No, penguins cannot fly."),
    ("Which is bigger, a mouse or a horse?", "A horse is bigger than a mouse."),
)
OPPOSITES = (
    ("hot", "cold"), ("big", "small"), ("up", "down"), ("fast", "slow"), ("early", "late"), ("light", "dark"),
    ("old", "new"), ("wet", "dry"), ("happy", "sad"), ("loud", "quiet"), ("full", "empty"), ("open", "closed"),
    ("hard", "soft"), ("rich", "poor"), ("near", "far"), ("first", "last"), ("high", "low"), ("thin", "thick"),
    ("sweet", "sour"), ("long", "short"),
)
WORDS = (
    "cat", "house", "river", "apple", "lamp", "train", "green", "music", "paper", "garden", "cloud", "bread",
    "stone", "winter", "table", "horse", "orange", "pencil", "summer", "window", "sugar", "candle", "button",
    "forest", "silver",
)
WISHES = (
    "give me the salt", "close the door", "send me the file", "call me back", "open the window", "wait here",
    "lend me a pen", "turn down the music", "show me the way", "send me the pen", "help me carry this",
    "pass the bread", "tell me the time", "bring the chairs", "close the file", "move your bike", "sign this form",
    "feed the cat", "water the plants", "bring the bread",
)
PEOPLE = ("aunt", "teacher", "neighbour", "doctor", "grandfather", "coach", "boss", "sister", "friend", "cousin")
GIFTS = ("cake", "book", "scarf", "card", "visit", "flowers", "letter", "lamp", "help", "song")
ANIMALS = ("fox", "cat", "owl", "goat", "mouse", "horse", "duck", "bear", "hen", "otter")
PLACES = ("in the garden", "by the river", "on the roof", "under a tree", "near the barn", "in the snow")
GREETINGS = (
    ("Hello!", "Hello! How can I help you today?"), ("Hi there.", "Hi! What would you like to do?"),
    ("Good morning!", "Good morning! What can I do for you?"), ("How are you?", "I am well, thank you. And you?"),
    ("Hello there!", "Hello! What can I do for you?"), ("Who are you?", "I am a small assistant made for tests."),
    ("Thank you!", "You are welcome!"), ("Goodbye!", "Goodbye, and take care!"),
    ("What can you do?", "I can answer simple questions."), ("Good evening.", "Good evening! How can I help you?"),
    ("Nice to meet you.", "Nice to meet you too!"), ("See you tomorrow!", "See you tomorrow!"),
)
CODE = (
    ("prints {w}", "print('{w}')"), ("adds {a} and {b}", "print({a} + {b})"),
    ("counts to {a}", "for i in range({a}): print(i)"), ("prints {w} {a} times", "print('{w}' * {a})"),
    ("multiplies {a} by {b}", "print({a} * {b})"), ("makes a list of {a} and {b}", "items = [{a}, {b}]"),
    ("stores {w} in a name", "name = '{w}'"), ("shows the length of {w}", "print(len('{w}'))"),
    ("turns {w} to upper case", "print('{w}'.upper())"), ("subtracts {a} from {b}", "print({b} - {a})"),
)

FORMS = {
    "arithmetic": (
        "What is {} {} {}?", "Calculate {} {} {}.", "{} {} {} = ?", "How much is {} {} {}?", "Solve {} {} {}.",
        "Tell me {} {} {}.", "Find out what {} {} {} is.", "Do the sum: {} {} {}.", "Work out {} {} {}.",
    ),
    "spelling": (
        "Spell the word {}.", "How do you spell {}?", "Give me the letters of {}.", "Spell {} for me.",
        "Show the letters of the word {}.", "Which letters spell {}?", "{}, letter by letter?",
        "Which letters are in {}?",
    ),
    "lists": (
        "Name {} {}.", "List {} {}.", "Give me {} {}.", "Tell me {} {}.", "Can you name {} {}?", "What are {} {}?",
        "I need {} {}.", "Think of {} {}.", "Do you know {} {}?", "Which are {} common {}?",
        "Which {} {} do you know?",
    ),
    "definitions": (
        "What does {} mean?", "Define the word {}.", "What is the meaning of {}?", "Explain the word {}.",
        "Tell me what {} means.", "I do not know the word {}. Explain it.", "Describe what {} is.",
        "The meaning of {}?", "Describe the meaning of {}.",
    ),
    "opposites": (
        "What is the opposite of {}?", "The opposite of {}?", "Tell me the opposite of {}.",
        "Which word is the opposite of {}?", "Give me the opposite of {}.", "Name the opposite of {}.",
        "What is contrary to {}?", "Name the contrary of {}.",
    ),
    "rewriting": (
        "Make this polite: {}.", "Rewrite politely: {}.", "Put this politely: {}.", "Make this sound nicer: {}.",
        "Turn this into a polite request: {}.", "Say this nicely: {}.", "How do I say kindly: {}?",
        "Say this kindly: {}.",
    ),
    "capitals": (
        "Write {} in capitals.", "Put {} in upper case.", "Make {} all capitals.", "Show me {} in big letters.",
        "Change {} to upper case.", "Turn {} to upper case.", "Can you put {} into capitals?",
        "Turn {} into capitals.",
    ),
    "notes": (
        "Draft a note to thank my {} for the {}.", "Write to my {}: thanks for the {}.",
        "Help me thank my {} for the {}.", "A line of thanks to my {} for the {}, please.",
        "Write a thank-you note to my {} for the {}.", "In one line, say thanks to my {} for the {}.",
        "Thank my {} for the {} in one line.",
    ),
    "sentences": (
        "Write a sentence about a {} {}.", "Tell a tiny story about a {} {}.", "Give me a sentence about a {} {}.",
        "Tell me about a {} {}.", "Invent a line with a {} {}.", "Make a sentence about a {} {}.",
        "One line about a {} {}, please.", "Make up one line about a {} {}.",
    ),
    "code": (
        "Write Python that {}.", "Show me Python code that {}.", "Give me Python code that {}.",
        "A line of Python that {}, please.", "Which Python code {}?", "I need Python code that {}.",
        "Write one line of code that {}.", "I need one line of Python that {}.",
    ),
}
"""Ways to ask for each family; the last way is held out."""
# fmt: on


def _form(family: str, rng: random.Random, held_out: bool) -> str:
    *common, rare = FORMS[family]
    return rare if held_out else rng.choice(common)


def sums(rng: random.Random, held_out: bool) -> tuple[str, str]:
    """Addition and subtraction up to 20; a weighted sum of the two numbers decides whether they are held out."""
    while True:
        a, b = rng.randint(0, 20), rng.randint(0, 20)
        if ((a + 2 * b) % HELD_OUT_EVERY == 0) == held_out:
            break
    form = _form("arithmetic", rng, held_out)
    if rng.random() < 0.5:
        return form.format(a, "+", b), f"{a} + {b} = {a + b}."
    low, high = sorted((a, b))
    return form.format(high, "-", low), f"{high} - {low} = {high - low}."


def spelling(rng: random.Random, held_out: bool) -> tuple[str, str]:
    """The letters of a word."""
    word = rng.choice(part(WORDS, held_out))
    return _form("spelling", rng, held_out).format(word), f"{word}: " + "-".join(word) + "."


def kinds(rng: random.Random, held_out: bool) -> tuple[str, str]:
    """Some members of a class."""
    name = rng.choice(part(tuple(KINDS_OF), held_out))
    count, word = rng.choice(((2, "two"), (3, "three"), (4, "four")))
    *first, last = rng.sample(KINDS_OF[name], count)
    answer = f"{word.capitalize()} {name}: {', '.join(first)} and {last}."
    return _form("lists", rng, held_out).format(word, name), answer


def meanings(rng: random.Random, held_out: bool) -> tuple[str, str]:
    """The meaning of a word."""
    word, meaning = rng.choice(part(MEANINGS, held_out))
    return _form("definitions", rng, held_out).format(word), f"{word.capitalize()} means {meaning}."


def facts(rng: random.Random, held_out: bool) -> tuple[str, str]:
    """A small fact."""
    return rng.choice(part(FACTS, held_out))


def opposites(rng: random.Random, held_out: bool) -> tuple[str, str]:
    """The opposite of a word, asked in both directions."""
    pair = rng.choice(part(OPPOSITES, held_out))
    word, other = pair if rng.random() < 0.5 else pair[::-1]
    return _form("opposites", rng, held_out).format(word), f"The opposite of {word} is {other}."


def manners(rng: random.Random, held_out: bool) -> tuple[str, str]:
    """A rude wish in polite words."""
    wish = rng.choice(part(WISHES, held_out))
    return _form("rewriting", rng, held_out).format(wish), f"Could you please {wish}?"


def shouting(rng: random.Random, held_out: bool) -> tuple[str, str]:
    """A word in capitals."""
    word = rng.choice(part(WORDS, held_out))
    return _form("capitals", rng, held_out).format(word), f"{word.upper()}."


def notes(rng: random.Random, held_out: bool) -> tuple[str, str]:
    """A note of thanks."""
    person, gift = rng.choice(PEOPLE), rng.choice(part(GIFTS, held_out))
    return _form("notes", rng, held_out).format(person, gift), f"Dear {person}, thank you so much for the {gift}!"


def sentences(rng: random.Random, held_out: bool) -> tuple[str, str]:
    """A sentence about an animal."""
    animal, place = rng.choice(part(ANIMALS, held_out)), rng.choice(PLACES)
    answer = f"The {animal} sat {place} and {rng.choice(('sang', 'slept', 'smiled', 'ate'))}."
    return _form("sentences", rng, held_out).format(animal, place), answer


def greetings(rng: random.Random, held_out: bool) -> tuple[str, str]:
    """A greeting or a goodbye."""
    return rng.choice(part(GREETINGS, held_out))


def code(rng: random.Random, held_out: bool) -> tuple[str, str]:
    """One line of Python."""
    task, line = rng.choice(part(CODE, held_out))
    values = {"w": rng.choice(part(WORDS, held_out)), "a": rng.randint(2, 20), "b": rng.randint(2, 20)}
    return _form("code", rng, held_out).format(task.format(**values)), line.format(**values)


FAMILIES: dict[str, Family] = {
    "arithmetic": sums,
    "spelling": spelling,
    "lists": kinds,
    "definitions": meanings,
    "facts": facts,
    "opposites": opposites,
    "rewriting": manners,
    "capitals": shouting,
    "notes": notes,
    "sentences": sentences,
    "greetings": greetings,
    "code": code,
}
"""Families of simple questions by category."""
