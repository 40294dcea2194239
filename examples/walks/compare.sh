#!/usr/bin/env bash
# Three methods on the same facts: first as their authors search, which is said to be no fair comparison; then with
# one search for all of them. One page with a table and plots.
set -euo pipefail
folder=${1:-out/walk-compare}
mkdir -p "$folder" && cd "$folder"

cat > compare.yaml <<'END'
name: compare
data: demo
n: 6
methods: [ROME, MEMIT, EMMET]
END

echo "== as published: what differs beside the method is said"
emendo experiment compare.yaml --plan-only

echo "== one search for all of them"
echo "search: fast" >> compare.yaml
emendo experiment compare.yaml --out runs

echo "== the page"
emendo report runs
ls runs/plots
