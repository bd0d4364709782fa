"""Word lists of the mini world: icon collections, fonts, marks and suffixes."""


def words(text: str) -> list[str]:
    """The words of a block of text."""
    return text.split()


# Icon collections: coloured icons.
COLOUR = words("""
    icon-park streamline-color streamline-ultimate-color streamline-plump-color streamline-flex-color
    streamline-sharp-color streamline-freehand-color streamline-kameleon-color streamline-cyber-color
    streamline-stickies-color flat-color-icons meteocons marketeq fluent-color circle-flags flagpack glyphs-poly
""")
# Icon collections: one-coloured solid icons.
SOLID = words("""
    game-icons healthicons fa7-solid temaki maki pinhead roentgen gis medical-icon covid mdi whh icon-park-solid
    bi ion fluent ri mingcute
""")
# Icon collections: one-coloured line icons.
LINE = words("""
    ph tabler solar carbon lucide hugeicons iconoir streamline streamline-freehand clarity uil majesticons
""")
# Suffixes of icon names that tell a style, not a thing.
STYLE = set(
    words("""
    outline outlined filled fill bold duotone light thin line linear solid rounded round sharp broken twotone two
    tone regular alt variant off 16 20 24 28 32 48 remix flat color neue micro mini
""")
)
# Fonts by designers other than Noto's (patterns of packages and of font files), the test side of `scripts`.
SCRIPT_TEST_FONTS = words("""
    fonts-lohit-* fonts-sil-* fonts-gfs-* fonts-dejavu-core fonts-dejavu-extra NotoLooped NotoKufi
    NotoRashi
""")
# Japanese font packages.
KANA_FONTS = words("""
    vlgothic sawarabi-gothic sawarabi-mincho motoya-l-cedar motoya-l-maruberi seto kiloji takao-mincho
    takao-gothic dotgothic16 reggae train morisawa-bizud-gothic morisawa-bizud-mincho umeplus
    yozvox-yozfont-standard-kana misaki
""")
# Hiragana and their readings.
KANA = dict(
    zip(
        "あいうえおかきくけこさしすせそたちつてとなにぬねのはひふへほまみむめもやゆよらりるれろわをん",
        words("""
    a i u e o ka ki ku ke ko sa shi su se so ta chi tsu te to na ni nu ne no ha hi fu he ho ma mi mu me mo ya yu
    yo ra ri ru re ro wa wo n
"""),
        strict=True,
    )
)
# Printed marks and their names.
MARKS = {
    "!": "exclamation mark",
    "?": "question mark",
    "&": "ampersand",
    "@": "at sign",
    "#": "hash sign",
    "$": "dollar sign",
    "%": "percent sign",
    "+": "plus sign",
    "=": "equals sign",
    "/": "slash",
    ";": "semicolon",
    ":": "colon",
    "(": "left parenthesis",
    ")": "right parenthesis",
    "[": "left bracket",
    "]": "right bracket",
}
