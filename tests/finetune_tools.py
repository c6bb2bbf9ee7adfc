"""Small tasks of each kind, made of the characters that the models of weights_tools know."""

import json
import random

LETTERS = "한국어공유합니다짧은문장입"
QUICK = ["--epochs", "2", "--batch_size", "16", "--max_seq_length", "16", "--learning_rate", "3e-3", "--dropout", "0"]


def word(rng, length=3, letters=LETTERS):
    return "".join(rng.choice(letters) for _ in range(length))


def write_sentiment(folder, rows=64, seed=0):
    """nsmc: positive and negative texts have no letter in common."""

    def line(rng, i):
        label = rng.randrange(2)
        letters = LETTERS[:6] if label else LETTERS[6:]
        return f"{i}\t{word(rng, 3, letters)} {word(rng, 4, letters)}\t{label}"

    files = {"ratings_train.txt": rows, "ratings_test.txt": rows // 2}
    return _write(folder, files, ["id\tdocument\tlabel"], line, seed)


def write_similarity(folder, rows=48, seed=0):
    """korsts: 5 for the same text, 0 for another one."""

    def line(rng, i):
        first, is_same = word(rng), rng.randrange(2)
        return f"g\tf\t2012\t{i:04d}\t{5.0 * is_same:.3f}\t{first}\t{first if is_same else word(rng)}"

    files = {"sts-train.tsv": rows, "sts-dev.tsv": 16, "sts-test.tsv": 16}
    return _write(folder, files, ["genre\tfilename\tyear\tid\tscore\tsentence1\tsentence2"], line, seed)


def write_names(folder, rows=48, seed=0):
    """naver-ner: words that begin with 국 are places."""

    def line(rng, i):
        words = [rng.choice(["국", "짧"]) + word(rng, 1) for _ in range(4)]
        return " ".join(words) + "\t" + " ".join("LOC-B" if w[0] == "국" else "O" for w in words)

    return _write(folder, {"train.tsv": rows, "test.tsv": 16}, [], line, seed)


def _write(folder, files, header, line, seed):
    """{name: rows}, of which `line` makes each from a generator and its number."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in files.items():
        (folder / name).write_text("\n".join([*header, *(line(rng, i) for i in range(count))]) + "\n")
    return folder


def write_questions(folder, rows=32, seed=0, impossible=False):
    """squad1 or squad2: the answer is the word after the question's."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    version = "v2.0" if impossible else "v1.1"
    for name, count in ((f"train-{version}.json", rows), (f"dev-{version}.json", 16)):
        paragraphs = []
        for i in range(count):
            words = [word(rng, 2) for _ in range(4)]
            context, place = " ".join(words), rng.randrange(3)
            answer = {"text": words[place + 1], "answer_start": 3 * (place + 1)}
            question = {"id": f"{name[0]}{i}", "question": words[place], "answers": [answer]}
            if impossible and i % 2:
                question |= {"question": word(rng, 2), "answers": [], "is_impossible": True}
            paragraphs.append({"context": context, "qas": [question]})
        (folder / name).write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    return folder
