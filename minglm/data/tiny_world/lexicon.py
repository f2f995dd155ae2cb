"""The words of the tiny world, by class. Every one is a single token; a name of two words is two tokens.

Classes are disjoint where a sentence could otherwise be read in two ways. The order within a class is part of the
corpus: change it and every text changes.
"""

from __future__ import annotations

WOMEN = tuple(
    (
        "Ada Alma Anya Bea Cora Dora Edda Ella Esme Faye Gita Greta Hana Ida Ines Iris Jana June Kaya Kira Lena Lila "
        "Lotte Luna Maya Mila Mina Mira Nadia Nell Nina Nora Olga Orla Paula Petra Rhea Rosa Runa Sana Signe Tara Tess "
        "Uma Vera Wanda Yara Zoe"
    ).split()
)
MEN = tuple(
    (
        "Abel Alvin Anton Arlo Basil Boris Bruno Cato Cyril Dario Desmond Egon Elias Emil Enzo Ezra Felix Finn Gil "
        "Gustav Hugo Igor Ivo Jasper Joel Kasper Kurt Lars Leo Linus Luca Magnus Milo Nils Noel Odo Omar Oskar Otto "
        "Pablo Quentin Ravi Rufus Silas Theo Tomas Viktor Yusuf"
    ).split()
)
GIVEN = WOMEN + MEN
FAMILY = tuple(
    (
        "Abbot Acker Arden Ashby Barlow Beck Birch Blythe Brandt Carver Colby Cotter Dahl Denby Draper Easton Elwood "
        "Fairfax Fenn Fisk Forde Garrick Goss Granger Hale Harker Holm Hurst Irwin Jarvis Keller Kemp Lark Linden "
        "Lowell Marsh Mercer Moss Nash Norwood Oakes Olsen Parr Penrose Quill Radley Reed Roth Sadler Selby Slade "
        "Stroud Tabor Thorne Tolen Udall Vance Voss Wade Weller Wilder Wynn Yarrow Zeller"
    ).split()
)
TOWNS = tuple("Ambry Brackwell Corvale Dunmor Elmford Fernay Glenholt Harwick Inverlea Juniper Kelmont Lowmere".split())
ROOMS = tuple(
    (
        "attic barn bathroom bedroom cellar garage garden hall kitchen library office pantry shed stable studio "
        "workshop"
    ).split()
)
OBJECTS = tuple(
    (
        "apple axe ball basket bell blanket book bottle bowl box broom brush bucket button candle card chain clock "
        "coat coin comb cup drum fan flag flute fork glove hammer hat jar kettle key kite knife ladder lamp lantern "
        "letter map mask mirror mug nail needle pan pen pencil pillow pipe plate pot purse ring rope ruler saw "
        "scarf shell shoe shovel soap spade sponge spoon stamp stick stone sword thimble torch towel toy tray umbrella "
        "vase violin wallet watch wheel whistle"
    ).split()
)
# Who and what the stories are about: one of each group in a story, so that nobody has to be told from those there.
CASTS = (("Ada", "Felix", "Nora"), ("Hugo", "Mira", "Odo"), ("Theo", "Vera", "Zoe"))
PROP_GROUPS = tuple(
    tuple(group.split())
    for group in ("ball bell book coin drum", "flute hat key kite lamp", "letter map rope sword vase violin")
)
CAST = tuple(name for group in CASTS for name in group)
PROPS = tuple(thing for group in PROP_GROUPS for thing in group)
COLOURS = tuple("black blue brown green grey orange pink purple red white yellow".split())
PETS = tuple("cat dog goat goose hamster hen horse pony rabbit sheep snail tortoise".split())
FOODS = tuple("bread cake carrots cheese cherries honey nuts pears plums rice soup tomatoes".split())
WORKPLACES = {
    "baker": "bakery",
    "teacher": "school",
    "doctor": "hospital",
    "miller": "mill",
    "sailor": "harbour",
    "painter": "gallery",
    "farmer": "farm",
    "smith": "forge",
    "tailor": "boutique",
    "guard": "castle",
    "judge": "court",
    "porter": "station",
}
JOBS = tuple(WORKPLACES)
WEATHER = tuple("bright cloudy cold foggy hot mild quiet rainy snowy stormy warm windy".split())
DAYPARTS = tuple("morning afternoon evening night".split())
MOODS = tuple("angry busy cheerful happy hungry nervous sad sleepy tired".split())
DIGITS = tuple("0123456789")
