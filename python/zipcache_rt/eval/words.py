"""Words that made-up prompts are made of."""

from __future__ import annotations

import random

_ADJECTIVES = """
able aged airy amber ample ancient angry arctic autumn awake bald bare basic bitter black bland blind blue blunt bold
brave brief bright brisk broad broken bronze brown busy calm careful cheap cheerful chilly civil clean clear clever
close cloudy coarse cold common cool copper cosy crisp crooked cubic curious curly damp daring dark dear deep dense
dim distant double dry dull dusty eager early easy eastern elder empty even exact faint fair famous fancy fast few
fierce final fine firm flat fond formal fragile free fresh frosty full funny gentle giant glad global golden grand
grassy great green grey handy happy hard hasty heavy hidden high hollow honest huge humble hungry icy idle inner joint
jolly junior keen kind large late lazy lean level light little lively local lonely long loose loud lucky lunar mellow
merry mild misty modern modest narrow neat noble noisy northern novel odd oily old open orange outer pale patient
plain polite proud purple quick quiet rapid rare raw ready red remote rich ripe robust rough round royal rural rusty
sandy secret serious shallow sharp shiny short shy silent silver simple sleepy slim slow small smart smooth snowy soft
solar solid sour southern spare steady steep stiff still stormy strict strong subtle sudden sunny sweet swift tall
tame tender thick thin tidy tiny tired tough urban vague vast velvet vivid warm wary western white wide wild windy
wise wooden yellow young
"""
_NOUNS = """
acorn actor anchor ankle apple apron arrow artist atlas attic baker balcony bamboo banner barn basket beacon bear
beaver bell bench berry bicycle bird blanket boat bottle bridge broom brush bucket bus butter button cabin cable camel
camera candle canoe canyon captain carpet castle cat cave cellar chair chalk cherry chimney circle clay cliff clock
cloud coach coat coffee coin comet compass cook coral cotton cousin crane crayon cricket crown cup curtain daisy
dancer deer desert desk diary dish doctor dolphin donkey door dragon drawer drum duck eagle easel elbow elephant
engine farmer feather fence ferry field finger flag flame flower flute forest fork fountain fox frog garden garlic
gate ghost giraffe glacier glove goat grape guitar hammer harbor hat hawk hedge helmet heron hill honey hook horse
hotel house iron island ivory jacket jar jewel judge juice jungle kettle key king kitchen kite ladder lake lamp
lantern laundry leaf lemon letter library lion lizard lobster magnet mango maple market meadow melon mirror mitten
monkey moon mountain mouse museum napkin needle nest notebook nurse oak ocean olive onion orbit orchard otter oven owl
oyster paddle painter palace panda paper parrot pasta peach pebble pencil pepper piano pigeon pilot pirate planet
plate plum pocket poet pond potato prince pumpkin puppet puzzle quilt rabbit radio raven ribbon river road robin
rocket roof rope saddle sailor salmon scarf school shelf ship shoe shovel singer sister sled snail soap sock spider
spoon squirrel stable stamp star statue stone stove street sugar table tailor teacher teapot temple tent tiger tower
train tree trumpet tulip tunnel turtle uncle valley vase village violin wagon waiter walnut watch whale wheel window
winter wolf yard zebra
"""
ADJECTIVES = tuple(_ADJECTIVES.split())
NOUNS = tuple(_NOUNS.split())


def made_up(rng: random.Random, n: int, letters: str, length: int) -> list[str]:
    """n different ones."""
    words: dict[str, None] = {}
    while len(words) < n:
        words["".join(rng.choices(letters, k=length))] = None
    return list(words)
