"""The rooms import one way: each only from rooms above it in this list."""

import networkx
from architecture import MARK, PAGE, drawn, imported, modules, rooms

LAYERS = [
    ["errors"],
    ["files", "settings", "normalisation"],
    ["corpus.values"],
    ["corpus.documents"],
    ["corpus.broken", "corpus.docstrings", "corpus.published"],
    ["corpus.remote"],
    ["corpus.records"],
    ["corpus.streams"],
    ["corpus.tables"],
    ["corpus.readers"],
    ["corpus.prepare"],
    ["vocabulary"],
    ["backbone"],
    ["adapters"],
    ["head", "isotropy", "engine"],
    ["targets.store"],
    ["targets.rows"],
    ["targets.data_driven"],
    ["targets.model_derived", "targets.likelihood_ratio", "targets.corpus_derived", "targets.smoothing"],
    ["targets.constructors"],
    ["loss", "processes"],
    ["training"],
    ["encoder", "export"],
    ["portable"],
    [
        "lens.key_tokens",
        "lens.pair",
        "evaluation.label_free",
        "evaluation.suite",
        "model_card",
        "reporter",
        "leaderboard",
        "doctor",
    ],
    ["lens.reader", "evaluation.held_out"],
    ["lens.learning", "lens.metrics"],
    ["evaluation.along_the_way", "evaluation.labelled"],
    ["evaluation.change"],
    ["evaluation.before_after"],
    ["recipe"],
    ["speed", "search.one_off", "static", "evaluation.report", "vectors", "publish"],
    ["lens.readable", "report"],
    ["search.explain", "search.sparse", "search.words"],
    ["search.index"],
    ["serve.answers", "serve.limits", "serve.refusal", "serve.metrics"],
    ["serve.batching", "serve.guard", "serve.service"],
    ["serve.app"],
    ["serve.server"],
    ["baselines.peer"],
    ["baselines.contrastive", "baselines.token_targets", "baselines.untrained", "baselines.echo"],
    ["baselines.embed_filter", "baselines.lexical", "baselines.static", "baselines.simcse"],
    ["baselines.cropping", "baselines.neighbours", "baselines.llm2vec", "baselines.whitened_cse"],
    ["comparison"],
    ["terminal"],
    ["options"],
    ["cli"],
    ["__main__"],
]


def test_every_module_has_its_place() -> None:
    assert set(modules()) == {name for layer in LAYERS for name in layer}


def test_a_room_imports_only_from_rooms_above_it() -> None:
    height = {name: index for index, layer in enumerate(LAYERS) for name in layer}
    for name, path in modules().items():
        for other in imported(path):
            assert height[other] < height[name], f"{name} imports {other}"


def test_rooms_form_no_circle_and_are_drawn_as_they_are() -> None:
    assert networkx.is_directed_acyclic_graph(rooms())
    assert PAGE.read_text(encoding="utf-8").partition(MARK)[2].strip() == drawn().strip(), "run python docs/architecture.py"
