"""A tokenizer.json with the vocabulary of a SentencePiece tokenizer."""

from __future__ import annotations

from pathlib import Path

from paligemma.processing.sentencepiece_model import object_pieces
from paligemma.processing.tokenizer import Tokenizer


def hub_json(source: Tokenizer, path: Path) -> Path:
    """The same vocabulary as a tokenizer.json: merges are all splits, in the order of ids."""
    from tokenizers import AddedToken, decoders, models, normalizers
    from tokenizers import Tokenizer as HubTokenizer

    pieces = [source.piece(token) for token in range(source.vocab.size)]
    ids = {piece: token for token, piece in enumerate(pieces)}
    learned = pieces[5 : source.vocab.loc0]
    merges = [
        (piece[:cut], piece[cut:])
        for piece in learned
        for cut in range(1, len(piece))
        if piece[:cut] in learned and piece[cut:] in learned
    ]
    hub = HubTokenizer(models.BPE(vocab=ids, merges=merges, unk_token="<unk>", fuse_unk=True))
    hub.normalizer = normalizers.Replace(" ", "▁")
    hub.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    hub.add_tokens([AddedToken("\n", normalized=False)])
    hub.add_special_tokens([AddedToken(piece, normalized=False) for piece in pieces[:4]])
    # Location pieces as plain added tokens, mask pieces wrongly marked special: both are met.
    hub.add_tokens([AddedToken(piece, normalized=False) for piece in object_pieces()[:1024]])
    hub.add_special_tokens(
        [AddedToken(piece, normalized=False) for piece in object_pieces()[1024:]]
    )
    hub.add_special_tokens([AddedToken("<image>", normalized=False)])
    hub.enable_truncation(max_length=3)
    hub.save(str(path))
    return path
