"""The authority's name in letters that are read from across the room."""

_GLYPHS = {
    "A": (".###.", "#...#", "#####", "#...#", "#...#"),
    "C": (".####", "#....", "#....", "#....", ".####"),
    "D": ("####.", "#...#", "#...#", "#...#", "####."),
    "F": ("#####", "#....", "####.", "#....", "#...."),
    "H": ("#...#", "#...#", "#####", "#...#", "#...#"),
    "I": ("###", ".#.", ".#.", ".#.", "###"),
    "L": ("#....", "#....", "#....", "#....", "#####"),
    "M": ("#...#", "##.##", "#.#.#", "#...#", "#...#"),
    "N": ("#...#", "##..#", "#.#.#", "#..##", "#...#"),
    "O": (".###.", "#...#", "#...#", "#...#", ".###."),
    "P": ("####.", "#...#", "####.", "#....", "#...."),
    "S": (".####", "#....", ".###.", "....#", "####."),
    "T": ("#####", "..#..", "..#..", "..#..", "..#.."),
    "U": ("#...#", "#...#", "#...#", "#...#", ".###."),
    "Y": ("#...#", ".#.#.", "..#..", "..#..", "..#.."),
}
_HALVES = {"..": " ", "#.": "▀", ".#": "▄", "##": "█"}


def large(word: str) -> list[str]:
    """The word in 5 lines of full blocks, two a dot."""
    return ["".join("██" if dot == "#" else "  " for dot in row) for row in _dots(word)]


def small(word: str) -> list[str]:
    """The word in 3 lines of half blocks, one a dot."""
    rows = [*_dots(word), "." * len(_dots(word)[0])]
    pairs = [zip(*rows[i : i + 2], strict=True) for i in range(0, len(rows), 2)]
    return ["".join(_HALVES[upper + lower] for upper, lower in pair) for pair in pairs]


def _dots(word: str) -> list[str]:
    return [".".join(_GLYPHS[letter][row] for letter in word) for row in range(5)]
