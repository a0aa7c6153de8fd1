# bash completion for zk0-hub; written by packaging/manuals.py
_zk0_hub() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} path="" word skip="" words=""
    case $prev in --config|--dir|--from) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;; esac
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        if [ -n "$skip" ]; then skip=""; continue; fi
        case $word in --address|--as|--config|--count|--dir|--from|--hours|--label|--listen|--name|--reason|--version) skip=1; continue ;; -*) continue ;; esac
        case "${path:+$path }$word" in "init"|"serve"|"status"|"invite"|"invitations"|"invitations list"|"invitations cancel"|"nodes"|"nodes list"|"nodes pending"|"nodes approve"|"nodes refuse"|"nodes revoke"|"nodes reenrol"|"federation"|"federation create"|"federation list"|"federation show"|"federation finish"|"federation freeze"|"federation thaw"|"federation drain"|"federation drop"|"federation remove"|"federation rollback"|"federation set"|"audit"|"quarantine"|"quarantine list"|"quarantine show"|"quarantine drop"|"backup"|"restore"|"versions"|"evaluate"|"push") path="${path:+$path }$word" ;; esac
    done
    case $path in
        "") words="init serve status invite invitations nodes federation audit quarantine backup restore versions evaluate push --dir --help --version" ;;
        "init") words="--help --listen --name" ;;
        "serve") words="--help" ;;
        "status") words="--help --json --watch" ;;
        "invite") words="--address --help --hours --json --label" ;;
        "invitations") words="list cancel --help" ;;
        "invitations list") words="--help --json" ;;
        "invitations cancel") words="--help --json" ;;
        "nodes") words="list pending approve refuse revoke reenrol --help" ;;
        "nodes list") words="--help --json" ;;
        "nodes pending") words="--help --json" ;;
        "nodes approve") words="--as --help --reason" ;;
        "nodes refuse") words="--help --reason" ;;
        "nodes revoke") words="--help --reason" ;;
        "nodes reenrol") words="--address --help --hours --json" ;;
        "federation") words="create list show finish freeze thaw drain drop remove rollback set --help" ;;
        "federation create") words="--config --from --help --json" ;;
        "federation list") words="--help --json" ;;
        "federation show") words="--help --json" ;;
        "federation finish") words="--help --json" ;;
        "federation freeze") words="--help --json" ;;
        "federation thaw") words="--help --json" ;;
        "federation drain") words="--help --json" ;;
        "federation drop") words="--fault --help --json --reason" ;;
        "federation remove") words="--help --json" ;;
        "federation rollback") words="--help --json" ;;
        "federation set") words="--config --help --json" ;;
        "audit") words="--all --count --help --json" ;;
        "quarantine") words="list show drop --help" ;;
        "quarantine list") words="--help --json" ;;
        "quarantine show") words="--help --json" ;;
        "quarantine drop") words="--help --json" ;;
        "backup") words="--help --json" ;;
        "restore") words="--help --json" ;;
        "versions") words="--help --json" ;;
        "evaluate") words="--help --json" ;;
        "push") words="--dry-run --help --json --version" ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
}
complete -o default -F _zk0_hub zk0-hub
