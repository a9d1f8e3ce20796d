from imagen.presets.emoji import emoji_64


def debug_64():
    return emoji_64()


def debug_256():
    return emoji_64()


def debug_1024():
    return emoji_64()
