#!/usr/bin/env bash
# Runs as root on every worker at every boot of a TPU VM, and may run again at any time: what is there is not made
# again. Brings Python, the packages of the lock and electra-flax here, then hands over to a systemd unit
# (electra-flax.service), which runs worker.py. Google's runner reports success whatever happens here, so this script
# says itself, in status/worker-N.json of the run, how far it is.
set -euo pipefail

export HOME=/root # not set at boot
export PATH="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/snap/bin"
readonly METADATA="http://${GCE_METADATA_HOST:-metadata.google.internal}/computeMetadata/v1/instance"
readonly PLACE=/opt/electra-flax
readonly LOG=/var/log/electra-flax-startup.log
readonly UV_VERSION=0.13.9

mkdir -p "$PLACE"
exec > >(tee -a "$LOG") 2>&1
exec 9>"$PLACE/lock"
flock 9

say() { echo "$(date -u +%FT%TZ) $*" >&2; }

# Tries a command until it succeeds, ten times, with growing pauses.
patiently() {
  local pause=2 attempt
  for attempt in 1 2 3 4 5 6 7 8 9; do
    "$@" && return 0
    say "failed ($attempt): $1 ${2-}; again in $pause s"
    sleep "$pause"
    pause=$((pause < 60 ? pause * 2 : 60))
  done
  "$@"
}

# An attribute of this machine, to the file answer. Only a 404 says that there is none, and then the second argument is
# its value: a server that is away must not make every worker of a pod the first.
ask() {
  local code
  code=$(curl -s -m 30 -o "$PLACE/answer" -w "%{http_code}" -H "Metadata-Flavor: Google" "$METADATA/attributes/$1") || return 1
  case $code in
  200) [ -s "$PLACE/answer" ] ;;
  404) [ $# -eq 2 ] && echo "$2" >"$PLACE/answer" ;;
  *) return 1 ;;
  esac
}

metadata() {
  patiently ask "$@" && cat "$PLACE/answer" # set -e is off in a substitution
}

run=$(metadata electra-run)
code=$(metadata electra-code)
machine=$(metadata electra-machine)
devices=$(metadata electra-devices)
workers=$(metadata electra-workers)
worker=$(metadata agent-worker-number 0)
readonly run code machine devices workers worker

# The bucket's status/worker-N.json; only words of ours go into it.
status() {
  printf '{"machine": "%s", "worker": %d, "phase": "%s", "time": %d, "message": "%s"}\n' \
    "$machine" "$worker" "$1" "$(date +%s)" "${2-}" >"$PLACE/status.json"
  patiently gcloud storage cp --quiet "$PLACE/status.json" "$run/status/worker-$worker.json"
}

step="starting"
failed() {
  local ended=$?
  [ "$ended" -ne 0 ] || return 0
  say "FAILED while $step (exit code $ended)"
  status sick "startup.sh failed while $step (exit code $ended); its log is in logs/startup-$worker.log" || true
  gcloud storage cp --quiet "$LOG" "$run/logs/startup-$worker.log" || true
}
trap failed EXIT

step="saying that it installs"
status installing

step="downloading the code"
folder="$PLACE/code/$(basename "$code")"
if [ ! -e "$folder/.whole" ]; then
  mkdir -p "$folder"
  patiently gcloud storage cp --quiet "$code/*" "$folder/"
  (cd "$folder" && sha256sum --check --quiet SHA256SUMS)
  touch "$folder/.whole"
fi

# The Python that the lock was read with: from the bucket, from the image, or brought by uv.
python_version=$(cat "$folder/python-version")
python_there() {
  local found
  for found in {"$PLACE/python",/usr,/usr/local}/bin/python"$python_version"; do
    if [ -x "$found" ] && "$found" -c "import venv, ensurepip" 2>/dev/null; then
      echo "$found"
      return 0
    fi
  done
  return 1
}

apt() { DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=600 "$@"; }

bring_python() {
  if [ -e "$folder/python.tar.gz" ]; then
    tar -xzf "$folder/python.tar.gz" -C "$PLACE"
    return
  fi
  if ! python3 -m pip --version >/dev/null 2>&1; then
    patiently apt update
    patiently apt install python3-pip
  fi
  patiently python3 -m pip install --quiet --target "$PLACE/uv" "uv==$UV_VERSION"
  patiently "$PLACE/uv/bin/uv" python install --install-dir "$PLACE/pythons" "$python_version"
  local found
  found=$(find "$PLACE/pythons" -name "python$python_version" -path "*/bin/*" -print -quit)
  [ -n "$found" ]
  ln -sfn "$(dirname "$(dirname "$found")")" "$PLACE/python"
}

step="installing Python"
# Not in a condition: there, a command that fails would not end bring_python.
python=$(python_there || true)
if [ -z "$python" ]; then
  bring_python
  python=$(python_there)
fi

# One environment for one lock and Python: another one makes another, the same one is never made twice.
step="installing packages"
lock="$folder/requirements-tpu.lock"
venv="$PLACE/venv-$python_version-$(sha256sum "$lock" | cut -c 1-16)"
offline=()
[ ! -e "$folder/python.tar.gz" ] || offline=(--no-index --find-links "$folder")
if [ ! -e "$venv/.whole" ]; then
  rm -rf "$venv"
  "$python" -m venv "$venv"
  patiently "$venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes "${offline[@]}" -r "$lock"
  touch "$venv/.whole"
fi
"$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --no-index --force-reinstall "$folder"/electra_flax-*.whl

step="starting the service"
# As JAX asks for on TPU VMs: what is copied to the devices lies in large buffers.
hugepages=/sys/kernel/mm/transparent_hugepage/enabled
if [ -w "$hugepages" ]; then
  echo always >"$hugepages"
fi
# Of JAX's processes: its own choice, 8482, is closed in networks that let through only what Google's rule for TPUs opens.
cat >"$PLACE/environment" <<END
ELECTRA_RUN=$run
ELECTRA_CODE=$folder
ELECTRA_MACHINE=$machine
ELECTRA_DEVICES=$devices
ELECTRA_WORKERS=$workers
ELECTRA_WORKER=$worker
JAX_COORDINATOR_PORT=8476
END
ln -sfn "$venv" "$PLACE/venv"
ln -sfn "$folder" "$PLACE/run"
cp "$folder/electra-flax.service" /etc/systemd/system/electra-flax.service
systemctl daemon-reload
systemctl start --no-block electra-flax.service
say "started electra-flax.service; its log: journalctl -u electra-flax, and $run/logs"
