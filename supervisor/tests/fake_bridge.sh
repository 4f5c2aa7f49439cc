#!/bin/sh
# A bridge that behaves as the key `behaviour` of its configuration says. Started as: run --config FILE
config=$3
value() { sed -n "s/^$1 = [\"']\(.*\)[\"']\$/\1/p" "$config"; }
phone=$(value phone)
behaviour=$(value behaviour)
dir=$(value state_dir)
seq=0
echo $$ >>"$dir/pids"

hello() {
  printf '{"type":"hello","protocol":%s,"version":"0","phone":"%s","journal":"j%s","last_seq":0,"pid":%s}\n' \
    "${1:-1}" "$phone" $$ $$
}
beat() { while :; do echo '{"type":"heartbeat"}' || exit; sleep 0.1; done; }
event() {
  seq=$((seq + 1))
  printf '{"type":"event","seq":%s,"at":"2026-11-22T12:00:00.000Z","event":%s}\n' $seq "$1"
}
# Answers every send; ends at stop, drain and the end of its input.
serve() {
  while read -r line; do
    echo "$line" >>"$dir/lines"
    case "$line" in
    *'"type":"send"'*)
      message=$(echo "$line" | sed 's/.*"message":"\([^"]*\)".*/\1/')
      event "{\"type\":\"accepted\",\"message\":\"$message\",\"attempt\":1}"
      event "{\"type\":\"started\",\"message\":\"$message\",\"attempt\":1,\"channel\":\"imessage\"}"
      ;;
    *'"type":"stop"'* | *'"type":"drain"'*) exit 0 ;;
    esac
  done
  exit 0
}

case "$behaviour" in
good) hello; echo '{"type":"ready"}'; beat & serve ;;
grandchild) sleep 1000 & echo $! >>"$dir/pids"; hello; echo '{"type":"ready"}'; beat & serve ;;
exit:*) hello; exit "${behaviour#exit:}" ;;
# Ready late, but within the time that it has.
slow) sleep 1; hello; sleep 1; echo '{"type":"ready"}'; beat & serve ;;
eats) hello; echo '{"type":"ready"}'; beat & held=$(head -c 60000000 /dev/zero | tr '\0' a); serve ;;
# Works too much, and ends when it is told to.
busy)
  hello; echo '{"type":"ready"}'; beat &
  trap 'exit 0' TERM
  exec 3<&0
  { (serve) <&3; kill $$; } &
  while :; do :; done ;;
mute) sleep 1000 ;;
never_ready)
  hello
  echo '{"type":"not_ready","reasons":[{"reason":"account_offline","remedy":"sign in"}]}'
  beat & serve
  ;;
stops_beating) hello; echo '{"type":"ready"}'; sleep 1000 ;;
ignores_stop) trap '' TERM; hello; echo '{"type":"ready"}'; beat & while :; do sleep 1; done ;;
floods_stdout) hello; echo '{"type":"ready"}'; beat & yes '{"type":"nonsense"}' ;;
floods_stderr) hello; echo '{"type":"ready"}'; beat & yes 'a line of log' >&2 ;;
half_line) hello; printf '{"type":"re'; exit 1 ;;
oversized)
  hello
  head -c 2000000 /dev/zero | tr '\0' a
  echo
  echo '{"type":"ready"}'
  beat & serve
  ;;
closes_stdin) exec <&-; hello; echo '{"type":"ready"}'; beat & while :; do sleep 1; done ;;
# Takes its phone's lock as a bridge does, and ends by KILL alone: what it reads and who started it is nothing to it.
hangs)
  trap '' TERM HUP
  exec 9>>"$dir/bridge.lock"
  flock -n 9 || exit 75
  printf '{"pid":%s,"parent":%s,"started_at":"%s"}' $$ $PPID "$(date -u +%Y-%m-%dT%H:%M:%S.000Z)" >"$dir/bridge.lock"
  hello; echo '{"type":"ready"}'; beat 9>&- &
  while :; do sleep 1 9>&-; done ;;
deaf) hello; echo '{"type":"ready"}'; beat & while :; do sleep 1; done ;;
other_protocol) hello 0; beat ;;
*) exit 78 ;;
esac
