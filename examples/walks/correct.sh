#!/usr/bin/env bash
# Twelve wrong answers of a chat model, corrected: judged by what is said (raw, in other words, in chat), by neighbors
# that must keep their answers, and by a gate, which refuses this edit and says why.
set -euo pipefail
folder=${1:-out/walk-correct}
mkdir -p "$folder" && cd "$folder"

cat > facts.csv <<'END'
prompt,subject,target
The capital of {} is the city of,Australia,Canberra
The capital of {} is the city of,Turkey,Ankara
The capital of {} is the city of,Nigeria,Abuja
The capital of {} is the city of,Pakistan,Islamabad
The capital of {} is the city of,New Zealand,Wellington
The capital of {} is the city of,Kazakhstan,Astana
The capital of {} is the city of,Myanmar,Naypyidaw
The capital of {} is the city of,Morocco,Rabat
The capital of {} is the city of,Tanzania,Dodoma
A ticket to {} costs $,the Louvre,20
The year in which {} opened is,the Sydney Opera House,1973
The currency of {} is the,Croatia,euro
END

echo "== neighbors, paraphrases and questions, guessed for the twelve; the neighbors are asked"
emendo requests expand facts.csv --model demo --out facts.yaml --overwrite

echo "== the edit, under the packaged gate; its search does not ask for the end of a target's last word"
emendo edit --model demo --requests facts.yaml --set target.word_end_weight=0 --gate default \
    --out fix --overwrite || echo "exit code $?"

echo "== a second try, with limits of one's own: the searches and the answers are kept"
emendo gate --print-default | sed '/^\[checks.efficacy\]/,/^limit/ s/^limit = .*/limit = 0.7/
  /^\[checks.questions\]/,/^limit/ s/^limit = .*/limit = 0.3/' > limits.toml
emendo edit --model demo --requests facts.yaml --set target.word_end_weight=0 --gate limits.toml \
    --out fix --overwrite

echo "== what is shipped, with its card of measured answers"
emendo export checkpoint --model demo --update fix/update.safetensors --out shipped
sed -n '/measured/,$p' shipped/README.md | head -40
