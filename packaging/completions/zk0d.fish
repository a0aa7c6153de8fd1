# fish completion for zk0d; written by packaging/manuals.py
complete -c zk0d -l foreground -d 'stay in the foreground (it always does; for symmetry with other daemons)'
complete -c zk0d -l state -r -F -d 'state folder (default /var/lib/zk0d)'
complete -c zk0d -l config -r -F -d 'settings (default DIR/zk0d.toml, then /etc/zk0d/conf.d)'
complete -c zk0d -l socket -r -F -d 'control socket (default DIR/control.sock)'
complete -c zk0d -l check -d 'check the settings and exit'
complete -c zk0d -l version -d 'show program\'s version number and exit'
