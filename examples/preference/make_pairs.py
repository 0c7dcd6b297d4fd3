#!/usr/bin/env python3
"""make_pairs.py CHATS COUNT OUTPUT: pairs of answers from the first COUNT chats of a file of data/define. Chosen is the
meaning of the word that is asked for, rejected that of the next chat's word of another class (a verb's for a noun, say)."""

import json
import sys


def word_class(chat):
    return chat[0]["content"].split()[2]  # Define the noun "...".


def main():
    source, count, output = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    with open(source, encoding="utf-8") as file:
        chats = [json.loads(line)["messages"] for line in file][:count]
    with open(output, "w", encoding="utf-8") as file:
        for i, chat in enumerate(chats):
            following = chats[i + 1:] + chats[:i]
            other = next(c for c in following if word_class(c) != word_class(chat))
            pair = {"prompt": chat[:-1], "chosen": chat[-1]["content"], "rejected": other[-1]["content"]}
            file.write(json.dumps(pair, ensure_ascii=False) + "\n")


main()
