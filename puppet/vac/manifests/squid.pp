# @summary Squid on this host, with the space's factories as clients and siblings
#
# @api private
class vac::squid {
  $from = '/etc/squid/squid.conf.in'
  $to = '/etc/squid/squid.conf'
  $trial = '/run/vac-squid.conf'

  package { 'squid':
    ensure => installed,
  }
  if $vac::local_squid =~ Pattern[/\//] {
    file { $from:
      ensure  => file,
      owner   => 'root',
      group   => 'root',
      mode    => '0644',
      source  => vac::trees($vac::local_squid, $vac::space, $vac::subspaces).map |$tree| { "${tree}/squid.conf.in" },
      require => Package['squid'],
      before  => Exec['vac squid-conf'],
    }
  }
  # It changes its output only if it has to, and then exits with 0: tried on a copy, to tell if there is anything to do.
  exec { 'vac squid-conf':
    command  => "vac squid-conf ${from} ${to}",
    onlyif   => "rm -f ${trial}; cp -p ${to} ${trial}; vac squid-conf ${from} ${trial}; test $? -ne 1",
    path     => '/usr/bin:/bin',
    provider => shell,
    require  => Package['squid'],
    notify   => Service['squid'],
  }
  service { 'squid':
    ensure  => running,
    enable  => true,
    restart => '/usr/bin/systemctl reload-or-restart squid',
  }
}
