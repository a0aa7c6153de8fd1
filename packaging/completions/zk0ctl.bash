# bash completion for zk0ctl; written by packaging/manuals.py
_zk0ctl() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} path="" word skip="" words=""
    case $prev in --out|--socket|--state|--wheels) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;; esac
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        if [ -n "$skip" ]; then skip=""; continue; fi
        case $word in --ca-fingerprint|--dataset|--episode-s|--episodes|--event|--federation|--field|--follower|--for|--fps|--index-url|--into|--keep|--leader|--level|--max-s|--model|--name|--note|--out|--reads|--rename|--rerun|--reset-s|--rest|--seconds|--seed|--sheet|--since|--socket|--state|--task|--timeout|--units|--until|--version|--wait|--wait-s|--wheels|--worker|-n) skip=1; continue ;; -*) continue ;; esac
        case "${path:+$path }$word" in "status"|"why"|"signals"|"enroll"|"federation"|"federation list"|"federation join"|"federation leave"|"robot"|"robot find"|"robot show"|"robot setup"|"robot calibrate"|"robot teleop"|"robot doctor"|"robot release"|"robot next"|"robot abort"|"record"|"record start"|"record watch"|"record next"|"record rerecord"|"record pause"|"record resume"|"record discard"|"record finish"|"record stop"|"dataset"|"dataset list"|"dataset add"|"dataset show"|"dataset verify"|"dataset sheet"|"dataset exclude"|"dataset include"|"dataset delete"|"dataset split"|"dataset merge"|"dataset import"|"dataset export"|"dataset repair"|"train"|"train now"|"train pause"|"train resume"|"receipts"|"receipts list"|"receipts verify"|"receipts accept-head"|"model"|"model list"|"model show"|"model pull"|"model export"|"rollout"|"rollout start"|"rollout success"|"rollout failure"|"rollout fetch"|"rollout next"|"rollout finish"|"rollout stop"|"logs"|"runtime"|"runtime install"|"runtime show"|"runtime check"|"runtime rollback"|"runtime remove"|"doctor"|"debug"|"debug bundle") path="${path:+$path }$word" ;; esac
    done
    case $path in
        "") words="status why signals enroll federation robot record dataset train receipts model rollout logs runtime doctor debug --help --socket --state --version" ;;
        "status") words="--help --json --timeout --wait --watch" ;;
        "why") words="--help --json" ;;
        "signals") words="--help --json --watch" ;;
        "enroll") words="--ca-fingerprint --help --new-key" ;;
        "federation") words="list join leave --help" ;;
        "federation list") words="--help --json" ;;
        "federation join") words="--help" ;;
        "federation leave") words="--help" ;;
        "robot") words="find show setup calibrate teleop doctor release next abort --help" ;;
        "robot find") words="--help --json --unplugged --wait-s" ;;
        "robot show") words="--help --json" ;;
        "robot setup") words="--follower --help --json --leader" ;;
        "robot calibrate") words="--follower --help --json --leader" ;;
        "robot teleop") words="--follower --fps --help --json --leader --seconds" ;;
        "robot doctor") words="--follower --help --json --leader --reads" ;;
        "robot release") words="--follower --help --json --unpowered" ;;
        "robot next") words="--help" ;;
        "robot abort") words="--help" ;;
        "record") words="start watch next rerecord pause resume discard finish stop --help" ;;
        "record start") words="--by-hand --dataset --episode-s --episodes --follower --help --json --keep --keys --leader --no-train --paused --rerun --reset-s --seed --task --until" ;;
        "record watch") words="--help --once" ;;
        "record next") words="--help" ;;
        "record rerecord") words="--help" ;;
        "record pause") words="--help" ;;
        "record resume") words="--help" ;;
        "record discard") words="--help" ;;
        "record finish") words="--help" ;;
        "record stop") words="--help" ;;
        "dataset") words="list add show verify sheet exclude include delete split merge import export repair --help" ;;
        "dataset list") words="--help --json" ;;
        "dataset add") words="--help --name --no-train --rename --task --train --units" ;;
        "dataset show") words="--episodes --help --json --sheet" ;;
        "dataset verify") words="--help --json" ;;
        "dataset sheet") words="--episodes --help --out" ;;
        "dataset exclude") words="--help" ;;
        "dataset include") words="--help" ;;
        "dataset delete") words="--help --yes" ;;
        "dataset split") words="--help --into --rest" ;;
        "dataset merge") words="--help --into" ;;
        "dataset import") words="--help --name --no-train --rename --task --train --units" ;;
        "dataset export") words="--help" ;;
        "dataset repair") words="--help --into" ;;
        "train") words="now pause resume --help" ;;
        "train now") words="--for --help --until" ;;
        "train pause") words="--for --help --until" ;;
        "train resume") words="--help" ;;
        "receipts") words="list verify accept-head --help" ;;
        "receipts list") words="--help --json" ;;
        "receipts verify") words="--help --json" ;;
        "receipts accept-head") words="--help --yes" ;;
        "model") words="list show pull export --help" ;;
        "model list") words="--help --json" ;;
        "model show") words="--help --json" ;;
        "model pull") words="--help" ;;
        "model export") words="--help" ;;
        "rollout") words="start success failure fetch next finish stop --help" ;;
        "rollout start") words="--episodes --follower --help --json --max-s --model --out --rename --reset-s --seed --task" ;;
        "rollout success") words="--help --note" ;;
        "rollout failure") words="--help --note" ;;
        "rollout fetch") words="--help --out" ;;
        "rollout next") words="--help" ;;
        "rollout finish") words="--help" ;;
        "rollout stop") words="--help" ;;
        "logs") words="--event --federation --field --follow --help --journal --json --level --since --version --worker" ;;
        "runtime") words="install show check rollback remove --help" ;;
        "runtime install") words="--again --cpu --cuda --help --index-url --wheels" ;;
        "runtime show") words="--help --json" ;;
        "runtime check") words="--help --json" ;;
        "runtime rollback") words="--help" ;;
        "runtime remove") words="--help" ;;
        "doctor") words="--help --json" ;;
        "debug") words="bundle --help" ;;
        "debug bundle") words="--help --out" ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
}
complete -o default -F _zk0ctl zk0ctl
