#!/bin/sh
# Runs every program of this folder on this machine's GPU and writes what they say to results/. Needs Linux on x86-64 and an
# NVIDIA driver, nothing else. One argument, if any: a word that the names of the programs to run contain.
cd "$(dirname "$0")" || exit 1
here=$(pwd)
wanted=$1
mkdir -p results

# The C library that the programs were linked with lies in lib/, for machines with an older one.
loader=
for program in programs/* tests/*; do
    [ -x "$program" ] || continue
    if ! command -v ldd >/dev/null 2>&1 || ldd "$program" 2>&1 | grep -q 'not found'; then
        loader=$here/lib/ld-linux-x86-64.so.2
    fi
    break
done
folders=$here/lib
for folder in $(printf '%s' "$LD_LIBRARY_PATH" | tr ':' ' ') /usr/lib/x86_64-linux-gnu /lib/x86_64-linux-gnu /usr/lib64 /lib64 \
    /usr/lib/wsl/lib /usr/local/nvidia/lib64 /usr/lib; do
    folders=$folders:$folder
done

# What the results are from. The programs find it in their environment, and results/ too.
names() { sort | uniq -c | sed 's/^ *//' | tr '\n' ';' | sed 's/;$//'; }
gpu=
driver=
if command -v nvidia-smi >/dev/null 2>&1; then
    gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | names)
    driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1)
fi
if [ -z "$gpu" ] && [ -d /proc/driver/nvidia/gpus ]; then
    gpu=$(sed -n 's/^Model:[[:space:]]*//p' /proc/driver/nvidia/gpus/*/information 2>/dev/null | names)
fi
if [ -z "$driver" ] && [ -r /proc/driver/nvidia/version ]; then
    driver=$(head -n 1 /proc/driver/nvidia/version)
fi
V3_RESULTS=$here/results
V3_GPU_NAME=${gpu:-none found}
V3_GPU_DRIVER=${driver:-none found}
V3_GPU_DATE=$(date -u +%Y-%m-%d)
export V3_RESULTS V3_GPU_NAME V3_GPU_DRIVER V3_GPU_DATE
header() {
    printf '# program: %s\n# gpu: %s\n# driver: %s\n# date: %s\n' "$1" "$V3_GPU_NAME" "$V3_GPU_DRIVER" "$V3_GPU_DATE"
    printf '# system: %s\n# revision: %s\n' "$(uname -srm)" "$(cat revision.txt)"
}

failed=0
one() {
    name=$(basename "$1")
    case $name in *"$wanted"*) ;; *) return ;; esac
    [ -z "$loader" ] || set -- "$loader" --library-path "$folders" "$@"
    if command -v timeout >/dev/null 2>&1; then set -- timeout 1800 "$@"; fi
    printf '%s ... ' "$name"
    header "$name" >"results/$name.txt"
    "$@" >>"results/$name.txt" 2>&1
    status=$?
    echo "# status: $status" >>"results/$name.txt"
    echo "$name $status" >>results/summary.txt
    if [ $status -eq 0 ]; then echo passed; else echo "failed ($status), see results/$name.txt"; failed=1; fi
}
header summary >results/summary.txt
for program in programs/*; do
    if [ -x "$program" ]; then one "$here/$program"; fi
done
for program in tests/*; do
    if [ -x "$program" ]; then one "$here/$program" --test-threads=1 --nocapture; fi
done
echo "results are in $here/results"
exit $failed
