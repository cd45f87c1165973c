"""The everyday things that scenes can show, and how a sentence speaks of them."""

# One word each, countable; no two of them name the same drawing.
_COUNTABLE = (
    "accordion airplane ambulance anchor ant apple avocado axe backpack balloon banana banjo "
    "baseball basketball bathtub battery bear bed bee bell bicycle bird boat bone book broom "
    "bucket bulb bus butterfly cactus cake camel camera candle cap car carrot castle cat chair "
    "cherry chicken clock cloud cookie cow crab crayon crocodile croissant crown cupcake deer "
    "dice dinosaur dog dolphin door doughnut dress drum duck egg eggplant elephant envelope "
    "flamingo flashlight football fox frog gear ghost gift giraffe globe glove goat grape guitar "
    "hamburger hammer hat hedgehog helicopter horse hotdog house jellyfish kangaroo key keyboard "
    "kite knife koala ladder laptop leaf lemon lion lizard lobster lock lollipop magnet "
    "microphone microscope mirror monkey moon motorcycle mouse mushroom newspaper octopus onion "
    "owl panda parrot peach peacock pear pencil penguin phone pig pill pineapple pizza pretzel "
    "pumpkin rabbit raccoon radio rainbow ring robot rocket rooster rose sandwich saxophone "
    "scorpion shark shirt shoe shrimp skull snail snake snowflake snowman spider strawberry sun "
    "sunflower swan taco taxi teapot telephone television tent tiger toilet tomato toothbrush "
    "tornado tractor train tree trophy truck trumpet tulip turkey turtle umbrella unicorn violin "
    "volcano watch watermelon whale wolf wrench zebra"
)
# Words without a plural of their own, and pairs.
UNCOUNTED: tuple[str, ...] = ("broccoli", "cheese", "corn", "popcorn", "sushi", "yarn")
PAIRS: tuple[str, ...] = ("fries", "glasses", "headphones", "jeans", "scissors", "socks")

THINGS: tuple[str, ...] = tuple(sorted([*_COUNTABLE.split(), *UNCOUNTED, *PAIRS]))

# Names of the icons where they differ from the word.
ICONS: dict[str, str] = {
    "apple": "red-apple",
    "bee": "honeybee",
    "boat": "sailboat",
    "book": "closed-book",
    "bulb": "light-bulb",
    "cake": "birthday-cake",
    "cap": "billed-cap",
    "car": "automobile",
    "cheese": "cheese-wedge",
    "cherry": "cherries",
    "clock": "alarm-clock",
    "corn": "ear-of-corn",
    "dice": "game-die",
    "dinosaur": "sauropod",
    "football": "soccer-ball",
    "fries": "french-fries",
    "gift": "wrapped-gift",
    "globe": "globe-showing-americas",
    "glove": "gloves",
    "grape": "grapes",
    "hat": "top-hat",
    "headphones": "headphone",
    "hotdog": "hot-dog",
    "knife": "kitchen-knife",
    "leaf": "maple-leaf",
    "lock": "locked",
    "moon": "crescent-moon",
    "phone": "mobile-phone",
    "pumpkin": "jack-o-lantern",
    "shirt": "t-shirt",
    "shoe": "running-shoe",
    "train": "locomotive",
    "tree": "deciduous-tree",
    "truck": "delivery-truck",
}
