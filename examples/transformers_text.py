"""The nearest-ETF head on text: a small BERT that distinguishes languages, seconds on a CPU.

    python examples/transformers_text.py
    python examples/transformers_text.py --head learned

The head does not depend on images. The sentences are random sequences of frequent words, and every byte is a token. The
loop is plain PyTorch. Needs `pip install 'nearest-etf[train]' transformers`.
"""

from __future__ import annotations

import argparse
import random

import torch
from transformers import BertConfig

from nearest_etf.torchport import measure_collapse
from nearest_etf.torchport.integrations.transformers import ETFConfig, ETFForClassification

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--head", default="implicit", help="linear, learned, fixed, implicit, class-mean or tight-frame")
parser.add_argument("--steps", type=int, default=80)
options = parser.parse_args()
torch.manual_seed(0)

WORDS = {
    "English": "the of and that with have this from they which would there their what about when make time year good",
    "German": "der die und das nicht mit auch sich eine dem werden aus noch nach wird bei einer nur oder aber",
    "French": "le les des une dans que pour qui sur pas plus avec tout fait nous mais comme leur bien aussi",
    "Spanish": "el los las una por con para como pero sus este entre cuando muy sin sobre todo hay donde quien",
    "Italian": "il gli che della per con sono non una come anche alla degli questo nel sua dei ancora dopo fra",
}
drawn = random.Random(0)


def sentences(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens (N, T), padded with zeros, their mask (N, T), and labels (N,)."""
    labels = torch.arange(count) % len(WORDS)
    tokens = torch.zeros(count, 48, dtype=torch.int64)
    for row, label in enumerate(labels.tolist()):
        words = list(WORDS.values())[label].split()
        text = " ".join(drawn.choices(words, k=drawn.randint(3, 7))).encode()[:48]
        tokens[row, : len(text)] = torch.tensor(list(text))
    return tokens, (tokens > 0).long(), labels


tokens, mask, labels = sentences(500)
test_tokens, test_mask, test_labels = sentences(100)

bert = BertConfig(
    vocab_size=256,
    hidden_size=48,
    num_hidden_layers=1,
    num_attention_heads=4,
    intermediate_size=96,
    max_position_embeddings=48,
)
model = ETFForClassification(ETFConfig(bert, head=options.head, pooling="mean", num_labels=len(WORDS)))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for step in range(options.steps):
    rows = torch.randint(len(labels), (50,))
    out = model(input_ids=tokens[rows], attention_mask=mask[rows], labels=labels[rows])
    optimizer.zero_grad()
    out.loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1}: loss {out.loss.item():.3f}")

model.eval()
with torch.no_grad():
    predicted = model(input_ids=test_tokens, attention_mask=test_mask).logits.argmax(1)
accuracy = float((predicted == test_labels).float().mean())
collapse = measure_collapse(
    model, [({"input_ids": test_tokens, "attention_mask": test_mask}, test_labels)], classifier="head"
)
print(
    f"accuracy {100 * accuracy:.1f} % on {len(test_labels)} sentences; NC1 {collapse.nc1:.3g}, NC2 {collapse.nc2:.3g}"
)
