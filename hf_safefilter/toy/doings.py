"""Everyday activities of the toy corpus: what people ask how to do, and the steps of the answers."""

from __future__ import annotations

from dataclasses import dataclass

from hf_safefilter.toy.wording import part


@dataclass(frozen=True, slots=True)
class Doing:
    """Verbs and objects that together make benign topics, and steps that fit all of them.

    Attributes:
        category: Part of everyday life.
        verbs: Phrases with ``{}`` for the object.
        objects: Objects of the verbs; every fifth is held out.
        steps: Short imperatives for the answer.
    """

    category: str
    verbs: tuple[str, ...]
    objects: tuple[str, ...]
    steps: tuple[str, ...]


# fmt: off
DOINGS = (
    Doing(
        "cooking",
        ("cook {}", "season {}", "prepare {} for guests", "serve {}", "make {} for lunch"),
        (
            "rice", "lentil soup", "pasta", "pancakes", "rice soup", "an omelette", "roast potatoes",
            "fried noodles", "a bean stew", "potato soup", "fish", "scrambled eggs", "carrot salad", "tomato sauce",
            "egg salad", "mushroom risotto", "apple pie", "a chicken curry", "vegetable pie", "bean salad",
            "dumplings", "oat porridge",
        ),
        (
            "heat a pan", "add a little salt", "stir slowly", "taste it before serving", "cut everything small",
            "keep the heat low", "boil some water", "let it rest for five minutes", "add fresh herbs",
        ),
    ),
    Doing(
        "baking",
        ("bake {}", "decorate {}", "keep {} fresh", "share {} with friends"),
        (
            "bread", "oat cookies", "a lemon cake", "muffins", "lemon muffins", "a carrot cake", "bread rolls",
            "biscuits", "a cherry tart", "oat bread", "brownies", "a cheese pie", "ginger biscuits", "scones",
            "a lemon tart",
        ),
        (
            "warm the oven", "mix flour and butter", "knead the dough", "wait until it is golden", "let it cool",
            "sift the flour", "use ripe fruit", "cover it with a cloth",
        ),
    ),
    Doing(
        "garden",
        ("grow {}", "plant {}", "water {}", "care for {}", "harvest {}"),
        (
            "tomatoes", "basil", "roses", "carrots", "cherry tomatoes", "sunflowers", "strawberries", "mint",
            "lettuce", "wild roses", "pumpkins", "tulips", "beans", "lavender", "red tulips", "an apple tree",
            "garlic", "peas", "onions", "a rose bush", "herbs on a balcony", "spinach",
        ),
        (
            "choose a sunny spot", "water it in the morning", "loosen the soil", "pull the weeds", "be patient",
            "add some compost", "leave enough room", "shield it from frost",
        ),
    ),
    Doing(
        "cleaning",
        ("clean {}", "polish {}", "wash {}", "dry {}", "remove dust from {}"),
        (
            "a keyboard", "a window", "an oven", "leather shoes", "an oven window", "a bike chain", "a carpet",
            "a wooden table", "a laptop screen", "a wooden window", "a fish tank", "a mirror", "a wool coat",
            "a kettle", "a leather coat", "a silver spoon", "glasses", "a sofa", "a fridge", "a laptop keyboard",
        ),
        (
            "use a soft cloth", "mix warm water with soap", "wipe in small circles", "let it dry in the air",
            "test a small spot first", "brush off loose dirt", "rinse it well",
        ),
    ),
    Doing(
        "repair",
        ("repair {}", "fix {}", "check {}", "take apart {}", "replace parts of {}"),
        (
            "a flat tyre", "a dripping tap", "a broken chair", "a clock", "a broken clock", "a zip",
            "a squeaky door", "a lamp", "a bike brake", "a broken lamp", "a torn shirt", "a radio", "a toaster",
            "a wobbly table", "a squeaky chair", "a garden gate", "a music box", "a shelf", "a toy train",
            "a broken toy",
        ),
        (
            "look for the fault", "gather your tools", "tighten the screws", "glue it and wait", "test it gently",
            "switch off the power", "order a spare part", "keep the small parts in a cup",
        ),
    ),
    Doing(
        "learning",
        ("learn {}", "practise {}", "get better at {}", "teach a child {}", "enjoy {}"),
        (
            "chess", "the piano", "spelling", "swimming", "the violin", "juggling", "long division", "drawing",
            "typing", "speed chess", "cycling", "the guitar", "knitting", "singing", "fast typing", "sewing",
            "origami", "calligraphy", "whistling", "guitar and singing", "public speaking", "skating",
        ),
        (
            "practise a little every day", "start with easy parts", "find a friend to join", "watch someone good",
            "keep notes", "rest when you are tired", "repeat the hard parts slowly", "be kind to yourself",
        ),
    ),
    Doing(
        "craft",
        ("draw {}", "paint {}", "knit {}", "fold {} from paper", "build {} with blocks", "sew {}"),
        (
            "a cat", "a small house", "a boat", "a scarf", "a small boat", "a bird", "a castle", "a tree",
            "a rabbit", "a bird house", "a flower", "a hat", "a fox", "a bridge", "a flower hat", "a crane",
            "a dragon", "a lion", "a star", "a castle bridge",
        ),
        (
            "begin with simple shapes", "choose two colours", "work from the middle", "keep your hands relaxed",
            "look at a picture", "add details last", "leave it and look again later",
        ),
    ),
    Doing(
        "planning",
        ("plan {}", "organise {}", "save money for {}", "prepare {}", "invite friends to {}", "pack for {}"),
        (
            "a picnic", "a birthday party", "a weekend trip", "a wedding", "a birthday picnic", "a school trip",
            "a garden party", "a move to a new flat", "a bike tour", "a school party", "a film night",
            "a family dinner", "a camping trip", "a book club", "a family trip", "a job interview", "a hike",
            "a quiz evening", "a yard sale", "a dinner in the garden",
        ),
        (
            "make a list", "ask who will come", "set a date", "check the weather", "set a small budget",
            "share the tasks", "book early", "pack the night before",
        ),
    ),
    Doing(
        "health",
        ("build a habit of {}", "make time for {}", "start {}", "stay motivated for {}"),
        (
            "morning walks", "stretching", "eating fruit", "sleeping early", "evening walks", "drinking water",
            "jogging", "deep breathing", "reading before bed", "evening jogging", "yoga", "taking breaks",
            "cooking at home", "brushing teeth", "walking breaks",
        ),
        (
            "start with five minutes", "do it at the same time each day", "tell a friend", "mark it on a calendar",
            "forgive a bad day", "reward yourself", "listen to your body",
        ),
    ),
    Doing(
        "computer",
        ("back up {}", "print {}", "rename {}", "sort {}", "share {} with a colleague", "open {}", "copy {}"),
        (
            "a folder of photos", "a spreadsheet", "a text file", "old emails", "a folder of emails",
            "a table of sales", "a slide show", "a music list", "a web page", "a music folder", "a calendar",
            "a python script", "a log file", "a zip file", "a folder of slides", "holiday pictures",
            "a contact list", "a pdf", "a notebook", "a list of photos",
        ),
        (
            "open the menu", "pick the file", "choose a clear name", "keep a copy", "check the result",
            "use the search box", "close other windows", "save your work",
        ),
    ),
    Doing(
        "work",
        ("write {}", "improve {}", "proofread {}", "shorten {}", "find a title for {}", "present {}"),
        (
            "a cover letter", "a thank-you note", "a report", "a speech", "a short speech", "a poem",
            "a meeting agenda", "a shopping list", "a news article", "a short report", "an invitation",
            "a book review", "a diary page", "a fairy tale", "a short book review", "a blog post", "a lab report",
            "a school essay", "a menu", "a school speech",
        ),
        (
            "say the main point first", "use short sentences", "read it aloud", "cut what is not needed",
            "think of your reader", "end with thanks", "check the spelling", "give one example",
        ),
    ),
    Doing(
        "pets",
        ("feed {}", "train {}", "play with {}", "brush {}", "calm {}", "take {} to the vet"),
        (
            "a puppy", "a kitten", "a parrot", "a hamster", "an old parrot", "a horse", "a pony", "an old dog",
            "a goat", "a small horse", "a duck", "a guinea pig", "a tortoise", "a lamb", "an old tortoise",
        ),
        (
            "move slowly", "offer a small treat", "speak softly", "keep fresh water ready", "repeat it every day",
            "watch how it feels", "stop while it is still fun",
        ),
    ),
    Doing(
        "shopping",
        (
            "choose {}", "compare prices for {}", "return {} to the shop", "wrap {} as a gift", "borrow {}",
            "sell {} fairly",
        ),
        (
            "a bike", "a phone", "a laptop", "a watch", "a new watch", "a violin", "a camera", "a coat", "a lamp",
            "a new camera", "a guitar", "a tablet", "a necklace", "a ring", "a new ring", "a scooter", "a tent",
            "a suitcase", "a painting", "a new guitar",
        ),
        (
            "set a price limit", "read a few reviews", "keep the receipt", "ask about the guarantee",
            "look at it in daylight", "compare three offers", "take your time",
        ),
    ),
)

# fmt: on


def doing_topics(held_out: bool) -> list[tuple[str, str, tuple[str, ...]]]:
    """(category, verb phrase, steps) of every everyday activity in the training part or in the held-out part."""
    return [
        (doing.category, verb.format(item), doing.steps)
        for doing in DOINGS
        for item in part(doing.objects, held_out)
        for verb in doing.verbs
    ]
