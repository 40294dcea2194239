# What a commit leaves on disk, made by its own commands. Run it in a checkout of that commit, once, and never again:
#
#     PYTHON=.venv/bin/python PYTHONPATH=$PWD/src:$PWD bash make.sh tests/earlier/COMMIT
#
set -euo pipefail
export HF_HUB_OFFLINE=1
PYTHON=$(realpath -s "${PYTHON:-python3}")
out=$1; mkdir -p "$out"; cd "$out"
E="$PYTHON -m emendo"
export EMENDO_HOME=$PWD/home OMP_NUM_THREADS=1 USER=earlier
"$PYTHON" - <<'PY'
import sys, yaml
from pathlib import Path
from tests.conftest import build_tiny
from tests.experiment_cases import write_records, QUICK, CHEAP
lm = build_tiny("llama")
lm.model.save_pretrained("model"); lm.tokenizer.save_pretrained("model")
write_records(Path("records.jsonl"), 4)
Path("experiment.yaml").write_text(yaml.safe_dump({
  "name": "earlier", "models": ["model"], "data": "records.jsonl", "part": "all", "n": 4, "mode": "sequential-batched", "batch_sizes": [2],
  "methods": ["emendo"], "layers": [[1,2]], "settings": QUICK, "measures": CHEAP}))
PY
QUICK="--set target.steps=3 --set contexts.scheme=fixed --set moments.multiple=4 --no-judge -q --json"
edit() { $E edit --model model --prompt "{} is located in the city of" --subject "$1" --target $2 --method emendo --layers 1,2 $QUICK "${@:3}" > /dev/null; }
edit "The Eiffel Tower" Rome --out update
$E init ledger --model model --who earlier -m "begin" -q --json >/dev/null
edit "The Eiffel Tower" Rome --ledger ledger --who earlier
edit "Big Ben" Paris --ledger ledger --who earlier
edit "The Colosseum" Tokyo --ledger ledger --who earlier
id=$($E log --ledger ledger --json | "$PYTHON" -c "
import json,sys
rows=json.load(sys.stdin); rows=rows.get('records',rows) if isinstance(rows,dict) else rows
print([r['id'] for r in rows if 'Big Ben' in json.dumps(r)][0])")
$E revert $id --ledger ledger --who earlier -q --json >/dev/null
cp -r ledger ledger-not-compacted
$E compact --ledger ledger --who earlier -q --json >/dev/null
edit "Notre Dame" Tokyo --ledger ledger --who earlier
$E experiment experiment.yaml --out experiment -q --json > /dev/null
rm -f ledger/lock ledger-not-compacted/lock experiment/.lock
