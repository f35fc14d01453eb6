# @summary The package
#
# @api private
class vac::install {
  if $vac::manage_package {
    package { $vac::package_name:
      ensure => $vac::package_ensure,
    }
  }
}
