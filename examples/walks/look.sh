#!/usr/bin/env bash
# One edit, looked at: where the model keeps the fact, what the edit does to an answer, and what changed around it.
set -euo pipefail
folder=${1:-out/walk-look}
mkdir -p "$folder" && cd "$folder"

echo "== where the fact is"
emendo trace --model demo --prompt "{} is located in the city of" --subject "The Eiffel Tower" --positions ends \
    --out trace

echo "== the edit"
emendo edit --model demo --prompt "{} is located in the city of" --subject "The Eiffel Tower" --target Rome \
    --target-true Paris --out edit --overwrite

echo "== what the edit does to the answer"
emendo see edit --model demo --prompt "The Eiffel Tower is located in the city of" --answer Rome --out see

echo "== what changed"
printf '%s\n' "The Eiffel Tower is located in the city of" "The Louvre is located in the city of" \
    "The capital of France is the city of" > prompts.txt
emendo diff base edit --model demo --prompts prompts.txt --out diff
ls trace see diff
