# frozen_string_literal: true

require 'rspec-puppet'

RSpec.configure do |c|
  c.module_path = File.expand_path('../..', __dir__)
  c.setup_fixtures = false
  c.strict_variables = true
  c.default_facts = {
    'networking' => { 'fqdn' => 'node1.example.org' },
    'os' => { 'family' => 'RedHat', 'name' => 'AlmaLinux', 'release' => { 'major' => '9' } },
  }
  c.before { Puppet[:strict] = :error }
end
