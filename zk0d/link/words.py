"""256 short, distinct English words: one byte each in the phrases that people compare (identity.phrase).

Not a secret and not a dictionary; the order is part of the protocol, so it never changes.
"""

_TEXT = """acid acorn actor adult agent alarm album alley amber angle ankle apple apron arena armor arrow
atlas attic audio aunt award axis bacon badge bagel baker bamboo banjo barn basil basket beach
bean beard bench berry bike birch bishop bison blade blanket board bonus book boots bottle bowl
brain branch bread brick bridge broom brush bucket bugle bulb bunny butter button cabin cable cactus
camel camera canal candle canoe canvas carbon cargo carrot castle cedar cello chalk chapel cheese cherry
chess chimney cider circus clay cliff clock cloud clover coach cobra cocoa comet compass copper coral
cotton couch crab crane crayon cricket crown crystal cymbal daisy dancer desert diamond dinner dolphin donkey
dragon drawer drum eagle easel echo elbow elm engine fabric falcon farmer feather fence ferry fiddle
finger flame flask flute forest fossil fox frame galaxy garden garlic gecko ghost giant ginger glacier
glove goblin gold gorilla granite grape gravel guitar hammer harbor harp hazel helmet heron hinge hockey
honey hornet igloo index indigo ink iris island ivory jacket jaguar jelly jewel judge jungle kayak
kernel kettle kiwi koala ladder lagoon lantern laser lemon lentil lily linen lizard llama lobster lotus
magnet mango maple marble meadow melon mirror mitten monkey moose mosaic muffin napkin nectar needle nickel
noodle nugget nutmeg oak oasis ocean olive onion orbit orchid otter oven owl oyster paddle palace
panda paper parrot peach pebble pencil pepper piano pigeon pillow pirate planet plum pocket poem polar
pony poppy potato pretzel prism pumpkin puppet puzzle quail quartz rabbit radar radish raven ribbon river"""
WORDS: tuple[str, ...] = tuple(_TEXT.split())
