"""What the bench takes from inside text2token, beyond the public names, and why. No other file of this package may.

Each group is what a public name would have to offer before it could go.
"""

# Settings of a comparison are checked, written, changed and compared as a recipe's are.
from text2token.recipe import Postprocessing
from text2token.settings import ONE_OR_MORE, Place, checked, difference, to_toml, with_assignments

# The corpus is prepared once and read by every peer; a public training prepares its own.
from text2token.corpus.prepare import Corpus, prepare_corpus
from text2token.corpus.published import without_secrets
from text2token.corpus.readers import BrokenLines, source_state

# Files are as safe as the product's: whole ones only, nothing of others replaced. Progress is told as there.
from text2token.files import atomic_file, atomic_folder, check_begun, check_ours, claim, forget
from text2token.progress import Progress, Reporter, Silent

# Every peer is scored by the product's own measures, in three post-processings of the same vectors, BM25 too;
# `evaluate` embeds for each of them, and takes models by name only.
from text2token.evaluation.label_free import Geometry, RetrievalScores, dense_scores, geometry, retrieval_scores
from text2token.evaluation.labelled import LabelledScores, TaskScore, score_suite
from text2token.evaluation.models import spreadsheet_text
from text2token.evaluation.suite import SuiteTask, read_suite, sample_suite
from text2token.model.encoder import TextEncoder, encoder_of, model_fingerprint, open_encoder
from text2token.model.whitening import Strength, sample_texts

# Peers that are not trained read the backbone as the product does.
from text2token.export.static import static_embedder
from text2token.model.backbone import cut_last_layers, embed, model_state, resolve_backbone, resolve_dtype
from text2token.model.backbone import tokenizer_of, transformer_of

# Peers that are trained differ in their objective alone: adapters, schedule by tokens, optimiser and trainer are the same.
from text2token.model.adapters import add_lora, merge_lora
from text2token.model.head import LanguageModelHead, load_head
from text2token.training.schedule import plan
from text2token.training.stage import StageResult, text_lengths, train_stage

# The control shuffles targets between their making and the training, and ablations share trained stages.
from text2token.model.head import centre_for_head
from text2token.model.bundle import load_backbone
from text2token.shards import sha256_of
from text2token.steps import write_card
from text2token.targets.store import CARD, read_card
from text2token.training.folder import WEIGHTS, Run, RunFolder, made_from
from text2token.training.stages import RESULT, Training

# The leaderboard looks as the report does.
from text2token.page import QUIET, RULE, drawing, filled, svg
