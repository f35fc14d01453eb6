# @summary NRPE's command check-vacd
#
# @api private
class vac::nrpe {
  if $vac::nrpe_package {
    package { $vac::nrpe_package:
      ensure => installed,
      before => File["${vac::nrpe_dir}/vac.cfg"],
    }
  }
  file { "${vac::nrpe_dir}/vac.cfg":
    ensure  => file,
    owner   => 'root',
    group   => 'root',
    mode    => '0644',
    content => "command[${vac::nrpe_command}]=/usr/bin/check-vacd\n",
  }
  ~> exec { "systemctl try-reload-or-restart ${vac::nrpe_service}":
    path        => '/usr/bin:/bin',
    refreshonly => true,
  }
}
