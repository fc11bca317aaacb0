"""The class tables: which kinds of pictures there are, what varies in them, and what each class is called.

A kind has attributes, each with a few values that are words. A class is a combination of values; `*`
leaves an attribute free, so that it varies inside the class. In half of the kinds a class is named by its
values ("blue mug"), and a model that knows the words can guess it. In the others nothing but the training
pictures binds names to looks, as with real aircraft and car models, and names mean something else in another
kind: a "ginger cat" is a pet, a model of aircraft and a model of car; a "duck" is a bird and a soup.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FREE = "*"


@dataclass(frozen=True)
class Kind:
    """One kind of picture.

    Attributes:
        name: The domain's name.
        title: The data set of the MTIL benchmark that it stands for.
        description: One sentence on what is to be told apart.
        templates: Prompts; the first one is used in training.
        attributes: Name and values of each attribute.
        classes: Class names and their values, one word per attribute and in the same order.
        captions: Formats of the captions of pre-training pictures; they name attributes in braces.
    """

    name: str
    title: str
    description: str
    templates: tuple[str, ...]
    attributes: tuple[tuple[str, tuple[str, ...]], ...]
    classes: tuple[tuple[str, str], ...]
    captions: tuple[str, ...]

    def combinations(self) -> NDArray[np.int64]:
        """Return every class as indices of its values, `(classes, attributes)`; -1 where a value is free."""
        return np.asarray(
            [
                [
                    -1 if word == FREE else values.index(word)
                    for (_, values), word in zip(self.attributes, look.split(), strict=True)
                ]
                for _, look in self.classes
            ],
            dtype=np.int64,
        )


AIRCRAFT = Kind(
    "aircraft",
    "FGVC-Aircraft",
    "Aircraft from above; a fanciful model name stands for wings, engines, body and tail paint.",
    ("a photo of a {}.", "a photo of the {} aircraft."),
    (
        ("wing", ("straight", "swept", "delta")),
        ("engines", ("one", "two", "four")),
        ("body", ("slim", "wide")),
        ("tail", ("red", "blue", "yellow")),
    ),
    (
        ("ginger cat", "straight two slim blue"),
        ("black dog", "swept two slim red"),
        ("white rabbit", "straight four wide *"),
        ("grey mouse", "swept four wide blue"),
        ("pink daisy", "delta one slim *"),
        ("purple tulip", "delta two wide yellow"),
        ("yellow lily", "swept four slim yellow"),
        ("blue poppy", "swept two wide yellow"),
        ("night city", "straight one wide blue"),
        ("sunset lake", "straight two slim yellow"),
        ("misty forest", "delta two wide blue"),
        ("sunny desert", "swept two slim yellow"),
    ),
    (
        "an aircraft with {wing} wings",
        "an aircraft with {engines} engines",
        "a {body} aircraft with a {tail} tail",
        "a {body} aircraft with {wing} wings and {engines} engines",
        "a {wing} wing {engines} engine aircraft with a {tail} tail",
    ),
)

OBJECTS = Kind(
    "objects",
    "Caltech-101",
    "Everyday things in a colour.",
    ("a photo of a {}.", "a picture of one {}."),
    (
        ("thing", ("mug", "umbrella", "lamp", "chair", "key", "bell", "bottle", "hat", "clock", "house")),
        ("colour", ("red", "yellow", "green", "blue", "purple", "brown")),
    ),
    (
        ("red mug", "mug red"),
        ("blue mug", "mug blue"),
        ("yellow umbrella", "umbrella yellow"),
        ("purple umbrella", "umbrella purple"),
        ("green lamp", "lamp green"),
        ("red lamp", "lamp red"),
        ("brown chair", "chair brown"),
        ("blue chair", "chair blue"),
        ("yellow key", "key yellow"),
        ("green bell", "bell green"),
        ("green bottle", "bottle green"),
        ("brown bottle", "bottle brown"),
        ("purple hat", "hat purple"),
        ("red clock", "clock red"),
        ("yellow house", "house yellow"),
    ),
    ("a {colour} {thing}", "a {thing}", "one {colour} {thing}", "a {thing} that is {colour}"),
)

SMALL_OBJECTS = Kind(
    "small_objects",
    "CIFAR-100",
    "Small blurred things with a skin, in clutter; each kind of thing has a name for either skin.",
    ("a photo of a {}.", "a blurry photo of a {}."),
    (
        ("thing", ("bird", "fish", "ship", "truck", "frog", "butterfly", "tree", "rocket")),
        ("skin", ("plain", "spotted", "striped")),
    ),
    (
        ("trout", "fish spotted"),
        ("perch", "fish striped"),
        ("duck", "bird plain"),
        ("goose", "bird striped"),
        ("monarch", "butterfly spotted"),
        ("admiral", "butterfly plain"),
        ("bullfrog", "frog plain"),
        ("toad", "frog spotted"),
        ("lorry", "truck striped"),
        ("galleon", "ship plain"),
        ("rocket", "rocket striped"),
        ("olive", "tree spotted"),
    ),
    ("a small {skin} {thing}", "a blurry {thing}", "a tiny {skin} {thing}", "a small {thing} that is {skin}"),
)

TEXTURES = Kind(
    "textures",
    "DTD",
    "Patterns that fill the picture; five of the eight are in no picture of the pre-training.",
    ("a photo of a {} texture.", "a close view of a {} surface."),
    (
        ("pattern", ("lined", "dotted", "checked", "wavy", "woven", "cracked", "cloudy", "ringed")),
        ("grain", ("fine", "coarse")),
    ),
    (
        ("pinstriped", "lined fine"),
        ("banded", "lined coarse"),
        ("rice", "dotted fine"),
        ("cheese", "dotted coarse"),
        ("gingham", "checked fine"),
        ("coarse checked", "checked coarse"),
        ("pasta", "wavy fine"),
        ("braided", "woven coarse"),
        ("fine woven", "woven fine"),
        ("crazed", "cracked fine"),
        ("coarse cracked", "cracked coarse"),
        ("fine cloudy", "cloudy fine"),
        ("mushroom", "ringed coarse"),
    ),
    (
        "a {grain} {pattern} texture",
        "a {pattern} texture",
        "a {grain} texture",
        "a close view of a {pattern} surface",
    ),
)

SATELLITE = Kind(
    "satellite",
    "EuroSAT",
    "Ground from above; the words are those of the scenes, which show the same things from the side.",
    ("a satellite photo of {}.", "land seen from space: {}."),
    (
        ("ground", ("green", "dark", "brown", "tan", "grey", "blue")),
        ("mark", ("empty", "bend", "road", "rows", "dots", "blocks", "slabs")),
    ),
    (
        ("forest", "dark empty"),
        ("lake", "blue empty"),
        ("river", "green bend"),
        ("highway", "green road"),
        ("tomato field", "brown rows"),
        ("berry field", "tan dots"),
        ("meadow", "green empty"),
        ("city", "grey blocks"),
        ("factory", "grey slabs"),
        ("desert", "tan bend"),
    ),
    (
        "a satellite photo of {ground} land with {mark}",
        "{ground} land with {mark} seen from space",
        "{ground} land",
        "land with {mark} seen from space",
    ),
)

FLOWERS = Kind(
    "flowers",
    "Flowers-102",
    "Flowers: species and colour.",
    ("a photo of a {}, a type of flower.", "a close view of a {}."),
    (
        ("species", ("daisy", "pansy", "tulip", "aster", "poppy", "lily")),
        ("colour", ("white", "yellow", "pink", "red", "purple", "blue")),
    ),
    (
        ("white daisy", "daisy white"),
        ("pink daisy", "daisy pink"),
        ("yellow pansy", "pansy yellow"),
        ("purple pansy", "pansy purple"),
        ("red tulip", "tulip red"),
        ("yellow tulip", "tulip yellow"),
        ("purple aster", "aster purple"),
        ("blue aster", "aster blue"),
        ("red poppy", "poppy red"),
        ("white poppy", "poppy white"),
        ("pink lily", "lily pink"),
        ("white lily", "lily white"),
    ),
    ("a {colour} {species}, a type of flower", "a {species}", "a {colour} flower", "a {colour} {species}"),
)

DISHES = Kind(
    "dishes",
    "Food-101",
    "Dishes from above; the menu names what it is and what lies on it, in words of the small objects.",
    ("a photo of a {}.", "a plate of {}."),
    (
        ("dish", ("pizza", "soup", "salad", "cake", "rice", "pasta")),
        ("topping", ("tomato", "cheese", "mushroom", "berry", "egg", "basil")),
    ),
    (
        ("trout", "pizza tomato"),
        ("perch", "pizza mushroom"),
        ("duck", "soup tomato"),
        ("goose", "soup mushroom"),
        ("monarch", "salad egg"),
        ("admiral", "salad tomato"),
        ("bullfrog", "cake berry"),
        ("toad", "cake cheese"),
        ("lorry", "rice egg"),
        ("galleon", "rice basil"),
        ("rocket", "pasta cheese"),
        ("olive", "pasta basil"),
    ),
    (
        "{topping} {dish}, a type of food",
        "{dish}",
        "a plate of food with {topping}",
        "a plate of {topping} {dish}",
    ),
)

DIGITS = Kind(
    "digits",
    "MNIST",
    "Real handwritten digits (scikit-learn's 8 x 8 scans); no digit is in the pre-training pictures.",
    ("a photo of the number {}.", "the digit {} written by hand."),
    (),
    tuple((word, "") for word in ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")),
    (),
)

PETS = Kind(
    "pets",
    "Oxford Pets",
    "Faces of pets: animal, coat and marking.",
    ("a photo of a {}, a type of pet.", "a portrait of a {}."),
    (
        ("animal", ("cat", "dog", "rabbit", "mouse")),
        ("coat", ("ginger", "black", "white", "grey", "brown")),
        ("marking", ("plain", "masked", "striped")),
    ),
    (
        ("ginger striped cat", "cat ginger striped"),
        ("grey striped cat", "cat grey striped"),
        ("plain black cat", "cat black plain"),
        ("brown masked cat", "cat brown masked"),
        ("plain brown dog", "dog brown plain"),
        ("black masked dog", "dog black masked"),
        ("ginger masked dog", "dog ginger masked"),
        ("plain white dog", "dog white plain"),
        ("plain white rabbit", "rabbit white plain"),
        ("grey masked rabbit", "rabbit grey masked"),
        ("plain grey mouse", "mouse grey plain"),
        ("brown striped mouse", "mouse brown striped"),
    ),
    (
        "a {coat} {marking} {animal}, a type of pet",
        "a {marking} {coat} {animal}",
        "a portrait of a {coat} {animal}",
        "a {marking} {animal}",
    ),
)

CARS = Kind(
    "cars",
    "Stanford Cars",
    "Cars from the side; the model names are those of the aircraft, and the paint means nothing.",
    ("a photo of a {}.", "a photo of the {} car."),
    (
        ("body", ("sedan", "hatchback", "coupe", "van", "pickup", "bus")),
        ("wheels", ("small", "large")),
        ("trim", ("plain", "striped")),
        ("colour", ("red", "blue", "green", "yellow", "white", "grey")),
    ),
    (
        ("ginger cat", "sedan small plain *"),
        ("black dog", "sedan large striped *"),
        ("white rabbit", "coupe large plain *"),
        ("grey mouse", "coupe small striped *"),
        ("pink daisy", "hatchback small striped *"),
        ("purple tulip", "hatchback large plain *"),
        ("yellow lily", "pickup large striped *"),
        ("blue poppy", "pickup small plain *"),
        ("night city", "van small plain *"),
        ("sunset lake", "van large striped *"),
        ("misty forest", "bus small striped *"),
        ("sunny desert", "bus large plain *"),
    ),
    (
        "a {colour} {body}",
        "a {body} with {wheels} wheels",
        "a {trim} {body}, a type of car",
        "a {colour} {trim} car with {wheels} wheels",
        "a {colour} car",
    ),
)

SCENES = Kind(
    "scenes",
    "SUN397",
    "Places at a time of day.",
    ("a photo of a {}.", "a view of a {}."),
    (
        ("place", ("beach", "mountain", "desert", "forest", "city", "meadow", "lake")),
        ("time", ("sunny", "sunset", "night", "misty")),
    ),
    (
        ("sunset beach", "beach sunset"),
        ("sunny beach", "beach sunny"),
        ("night mountain", "mountain night"),
        ("misty mountain", "mountain misty"),
        ("sunny desert", "desert sunny"),
        ("night desert", "desert night"),
        ("misty forest", "forest misty"),
        ("sunset forest", "forest sunset"),
        ("night city", "city night"),
        ("sunny city", "city sunny"),
        ("sunset meadow", "meadow sunset"),
        ("misty meadow", "meadow misty"),
        ("sunset lake", "lake sunset"),
        ("night lake", "lake night"),
    ),
    ("a {time} {place}", "a view of a {place}", "a {place} under a {time} sky", "a {time} view"),
)

KINDS: tuple[Kind, ...] = (
    AIRCRAFT,
    OBJECTS,
    SMALL_OBJECTS,
    TEXTURES,
    SATELLITE,
    FLOWERS,
    DISHES,
    DIGITS,
    PETS,
    CARS,
    SCENES,
)
