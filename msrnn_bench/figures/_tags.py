"""Which of the tags that the paper's Table 5 prints mean what one of our classes of the scheme `pos` means.

Left out, for ours is another thing under the name: FW, UH and NNPS, which our tagger knows from a list of words alone (a plural
name that it does not know is an NNP), and SYM, which here is every mark that has no class of its own.
"""

SAME_MEANING = {
    "”": "quote_close", "\\n": "newline",
    **{tag: tag for tag in (
        "POS", "$", ")", ".", "WP$", "CD", "NN", "NNS", "NNP", ":", "JJ", "VBP", "JJS", "WDT", "VBN", "EX", "RB", ",", "VBG",
        "RBS", "VBZ", "CC", "VBD", "VB", "PRP", "RP", "WRB", "WP", "JJR", "RBR", "PDT", "IN", "PRP$", "DT", "MD", "TO",
    )},
}  # fmt: skip
